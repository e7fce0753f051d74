"""KeyService: what a caller may know of the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from greatseal.v1 import key_pb2
from greatseald.domain.errors import TokenUnavailable
from greatseald.domain.keys import parse_key_name
from greatseald.domain.policy import READ_KEYS
from greatseald.rpc import conversion

if TYPE_CHECKING:
    import grpc

    from greatseald.app.access import Access
    from greatseald.app.keys import KeyRing, SigningKey
    from greatseald.app.versions import SigningVersion
    from greatseald.rpc.gate import Call, Gate

_SERVICE: Final = "/greatseal.v1.KeyService/"
_PAGE: Final = 50
_MAX_PAGE: Final = 1000


class KeyService:
    """`greatseal.v1.KeyService`. Authorisation comes before existence: who may not read a key cannot learn of it."""

    def __init__(self, keys: KeyRing, access: Access) -> None:
        self._keys = keys
        self._access = access

    def handlers(self, gate: Gate) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """The methods by path."""
        return {
            _SERVICE + "GetKey": gate.unary(_SERVICE + "GetKey", key_pb2.GetKeyRequest.FromString, self.get_key),
            _SERVICE + "ListKeys": gate.unary(
                _SERVICE + "ListKeys", key_pb2.ListKeysRequest.FromString, self.list_keys
            ),
            _SERVICE + "GetPublicKey": gate.unary(
                _SERVICE + "GetPublicKey", key_pb2.GetPublicKeyRequest.FromString, self.get_public_key
            ),
        }

    async def get_key(self, call: Call, request: key_pb2.GetKeyRequest) -> key_pb2.Key:
        """Return one key."""
        return self._shown(call, (await self._find(call, request.name))[0])

    async def list_keys(self, call: Call, request: key_pb2.ListKeysRequest) -> key_pb2.ListKeysResponse:
        """Return a page of the keys that the caller may read, by name."""
        rules = self._access.rules_of(call.caller)
        if not any(READ_KEYS in rule.actions for _, rule in rules):
            await self._access.require(call.caller, call.peer, READ_KEYS)
        size = conversion.page_size(request.page_size, _PAGE, _MAX_PAGE)
        after = conversion.read_page_token("keys", request.page_token) if request.page_token else ""
        names = sorted(
            name
            for name in self._keys.keys
            if name > after and any(rule.allows(READ_KEYS, name, "") for _, rule in rules)
        )
        page = names[:size]
        following = conversion.write_page_token("keys", page[-1]) if len(names) > size else ""
        shown = [self._shown(call, self._keys.keys[name]) for name in page]
        return key_pb2.ListKeysResponse(keys=shown, next_page_token=following)

    async def get_public_key(self, call: Call, request: key_pb2.GetPublicKeyRequest) -> key_pb2.PublicKey:
        """Return a key's public half and its certificates."""
        version = await self._find_version(call, request.name)
        if version.public_key is None:
            message = f"the public half of {version.name} is not known yet: {version.detail}"
            raise TokenUnavailable(message, token=version.holdings[0].token.name)
        pem = version.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return key_pb2.PublicKey(
            key_version=version.name,
            pem=pem,
            algorithms=[conversion.algorithm_to_wire(algorithm) for algorithm in version.offered],
            certificate_chain=version.certificate_chain,
        )

    async def _find(self, call: Call, resource: str) -> tuple[SigningKey, int | None]:
        name, number = parse_key_name(resource)
        await self._access.require(call.caller, call.peer, READ_KEYS, name)
        return self._keys.find(name), number

    async def _find_version(self, call: Call, resource: str) -> SigningVersion:
        key, number = await self._find(call, resource)
        return key.version(number)

    def _shown(self, call: Call, key: SigningKey) -> key_pb2.Key:
        version = key.primary_version
        return key_pb2.Key(
            name=key.resource_name,
            primary_version=version.name,
            token=f"tokens/{version.holdings[0].token.name}",
            algorithms=[conversion.algorithm_to_wire(algorithm) for algorithm in version.offered],
            state=key_pb2.KeyState.Value(version.condition),
            state_detail=version.detail,
            spki_sha256=bytes.fromhex(version.spki_sha256),
            allowed_actions=self._access.allowed_actions(call.caller, key.name),
        )
