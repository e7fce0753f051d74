"""What each PKCS#11 return value means for a signature: failed, unknown, locked, tried again."""

from __future__ import annotations

import pkcs11
import pytest

from greatseald.adapters.tokens.ckr import CKR, VERDICTS, LoginVerdict, ckr_name, login_verdict, verdict
from greatseald.adapters.tokens.pkcs11 import return_value

# The one that is read so itself, and one of an operation that a token host never asks for.
NOT_IN_THE_TABLE = {
    "FunctionFailed", "KeyIndigestible",
}  # fmt: skip
UNKNOWN_IN_THE_SPECIFICATION = (0x0FFF, 0x80000001, 0x8000BEEF)


@pytest.mark.parametrize("value", [CKR.FUNCTION_FAILED, CKR.DEVICE_ERROR, CKR.DEVICE_REMOVED, CKR.TOKEN_NOT_PRESENT,
                                   CKR.GENERAL_ERROR, CKR.OPERATION_ACTIVE, CKR.DEVICE_MEMORY, *UNKNOWN_IN_THE_SPECIFICATION])  # fmt: skip
def test_where_the_token_may_have_signed_the_answer_is_unknown(value: int):
    assert verdict(value, "C_Sign").unknown
    assert not verdict(value, "C_Sign").again


@pytest.mark.parametrize("value", [*CKR, *UNKNOWN_IN_THE_SPECIFICATION])
@pytest.mark.parametrize("function", ["C_SignInit", "C_OpenSession", "C_FindObjects", "C_Login"])
def test_what_failed_before_c_sign_was_certainly_not_signed(value: int, function: str):
    assert not verdict(value, function).unknown


@pytest.mark.parametrize(
    "value", [CKR.SESSION_HANDLE_INVALID, CKR.SESSION_CLOSED, CKR.OBJECT_HANDLE_INVALID, CKR.KEY_HANDLE_INVALID]
)
def test_a_lost_session_is_reopened_and_the_operation_tried_again(value: int):
    assert verdict(value, "C_Sign").again


@pytest.mark.parametrize("row", VERDICTS.values())
def test_nothing_that_may_have_signed_is_ever_tried_again_by_itself(row):
    assert not (row.unknown and row.again)
    assert not (row.locked and row.retry)


@pytest.mark.parametrize("value", [CKR.PIN_INCORRECT, CKR.PIN_LOCKED, CKR.PIN_EXPIRED])
def test_a_pin_that_is_refused_needs_an_operator(value: int):
    assert verdict(value, "C_Login").locked
    assert login_verdict(value) is LoginVerdict.REFUSED


def test_a_login_whose_answer_says_nothing_may_have_tried_the_pin():
    assert login_verdict(CKR.FUNCTION_FAILED) is LoginVerdict.AMBIGUOUS
    assert login_verdict(CKR.DEVICE_ERROR) is LoginVerdict.AMBIGUOUS
    assert login_verdict(0x80001234) is LoginVerdict.AMBIGUOUS
    assert login_verdict(CKR.TOKEN_NOT_PRESENT) is LoginVerdict.NOT_TRIED


def test_values_are_named_as_the_specification_names_them():
    assert ckr_name(0x30) == "CKR_DEVICE_ERROR"
    assert ckr_name(0x80000042) == "vendor-defined CKR 0x80000042"


def test_every_exception_of_the_binding_is_a_return_value_again():
    ours = {"MultipleObjectsReturned", "MultipleTokensReturned", "NoSuchKey", "NoSuchToken", "PKCS11Error"}
    for name, kind in vars(pkcs11.exceptions).items():
        if not isinstance(kind, type) or not issubclass(kind, pkcs11.PKCS11Error) or name in ours:
            continue
        assert (return_value(kind()) == CKR.FUNCTION_FAILED) == (name in NOT_IN_THE_TABLE), name
    assert return_value(pkcs11.AnotherUserAlreadyLoggedIn()) == CKR.USER_ANOTHER_ALREADY_LOGGED_IN
    assert return_value(pkcs11.FunctionCancelled()) == CKR.FUNCTION_CANCELED
    assert return_value(pkcs11.TokenNotRecognised()) == CKR.TOKEN_NOT_RECOGNIZED
    assert return_value(pkcs11.PinLenRange()) == CKR.PIN_LEN_RANGE
    assert return_value(pkcs11.SlotIDInvalid()) == CKR.SLOT_ID_INVALID
