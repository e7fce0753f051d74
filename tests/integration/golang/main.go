// Command logcheck verifies Greatseal's audit log with Go's own implementation of signed notes and
// transparency logs (golang.org/x/mod/sumdb), which shares no code with Greatseal.
//
//	logcheck checkpoint  VKEY NOTE                       prints origin, size and root
//	logcheck cosigned    VKEY NOTE WITNESS-VKEY          prints the witness's name and the time of its cosignature
//	logcheck receipt     VKEY RECEIPT [PUBLIC-KEY-PEM]   both proofs, the link, and with a key the signature
//	logcheck consistency VKEY OLD-NOTE NEW-NOTE PROOF    PROOF has one base64 hash a line
//	logcheck tiles       VKEY NOTE DIR                   the tiles of DIR lead to the checkpoint, every entry bundle to the tiles
//
// VKEY, NOTE and so on are files. Exit status: 0 verified, 1 refused (the reason on stderr), 2 usage.
//
// tlog.ParseTree accepts only the checksum database's own header, and the tile paths of this module
// are tile/8/L/N: so checkpoints are three lines read here, and tiles come through a TileReader.
package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	commands := map[string]struct {
		run      func(files []string) error
		min, max int
	}{
		"checkpoint":  {checkpointCommand, 2, 2},
		"cosigned":    {cosignedCommand, 3, 3},
		"receipt":     {receiptCommand, 2, 3},
		"consistency": {consistencyCommand, 4, 4},
		"tiles":       {tilesCommand, 3, 3},
	}
	if len(os.Args) < 2 {
		usage()
	}
	command, ok := commands[os.Args[1]]
	if files := os.Args[2:]; !ok || len(files) < command.min || len(files) > command.max {
		usage()
	}
	if err := command.run(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: logcheck checkpoint|cosigned|receipt|consistency|tiles VKEY FILE...")
	os.Exit(2)
}

type checkpoint struct {
	origin string
	size   int64
	root   tlog.Hash
}

func openCheckpoint(vkeyFile string, signed []byte) (checkpoint, error) {
	vkey, err := os.ReadFile(vkeyFile)
	if err != nil {
		return checkpoint{}, err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return checkpoint{}, err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return checkpoint{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return checkpoint{}, errors.New("the checkpoint has other than three lines")
	}
	if lines[0] != verifier.Name() {
		return checkpoint{}, errors.New("the checkpoint is of another origin")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return checkpoint{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return checkpoint{lines[0], size, root}, err
}

func checkpointCommand(files []string) error {
	signed, err := os.ReadFile(files[1])
	if err != nil {
		return err
	}
	opened, err := openCheckpoint(files[0], signed)
	if err != nil {
		return err
	}
	fmt.Println(opened.origin, opened.size, opened.root)
	return nil
}

// witness verifies C2SP cosignatures (type 0x04), which the note package leaves to its callers.
type witness struct {
	name string
	key  ed25519.PublicKey
}

func (w witness) Name() string { return w.name }

func (w witness) KeyHash() uint32 {
	sum := sha256.Sum256(append([]byte(w.name+"\n\x04"), w.key...))
	return binary.BigEndian.Uint32(sum[:4])
}

func (w witness) Verify(text, signature []byte) bool {
	if len(signature) != 72 {
		return false
	}
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(signature[:8]), text)
	return ed25519.Verify(w.key, []byte(message), signature[8:])
}

// cosignedCommand opens a note with the log's key and a witness's at once: both have to have signed it.
func cosignedCommand(files []string) error {
	signed, err := os.ReadFile(files[1])
	if err != nil {
		return err
	}
	if _, err := openCheckpoint(files[0], signed); err != nil {
		return err
	}
	vkey, err := os.ReadFile(files[2])
	if err != nil {
		return err
	}
	parts := strings.SplitN(strings.TrimSpace(string(vkey)), "+", 3)
	if len(parts) != 3 {
		return errors.New("not a verifier key")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 33 || key[0] != 4 {
		return errors.New("not a witness's verifier key")
	}
	w := witness{parts[0], key[1:]}
	if fmt.Sprintf("%08x", w.KeyHash()) != parts[1] {
		return errors.New("another key id than the key's")
	}
	opened, err := note.Open(signed, note.VerifierList(w))
	if err != nil {
		return err
	}
	for _, each := range opened.Sigs {
		data, err := base64.StdEncoding.DecodeString(each.Base64)
		if err != nil {
			return err
		}
		fmt.Println(each.Name, binary.BigEndian.Uint64(data[4:12]))
	}
	return nil
}

type part struct {
	Entry []byte `json:"entry"`
	Proof string `json:"proof"`
}

type proven struct {
	index int64
	leaf  tlog.Hash
	entry struct {
		T   string `json:"t"`
		Log string `json:"log"`
		Tbs string `json:"tbs"`
		Res string `json:"res"`
		Sig []byte `json:"sig"`
		Key struct {
			Spki string `json:"spki_sha256"`
		} `json:"key"`
		Intent struct {
			Index int64  `json:"index"`
			Leaf  string `json:"leaf_hash"`
		} `json:"intent"`
	}
}

// prove checks one entry's C2SP tlog-proof and the signature of the checkpoint in it.
func prove(vkeyFile string, p part) (result proven, origin string, err error) {
	head, signed, ok := strings.Cut(p.Proof, "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" || !strings.HasPrefix(lines[1], "index ") {
		return result, "", errors.New("not a tlog-proof")
	}
	if result.index, err = strconv.ParseInt(lines[1][len("index "):], 10, 64); err != nil {
		return result, "", err
	}
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return result, "", err
		}
		proof = append(proof, hash)
	}
	opened, err := openCheckpoint(vkeyFile, []byte(signed))
	if err != nil {
		return result, "", err
	}
	result.leaf = tlog.RecordHash(p.Entry)
	if err := tlog.CheckRecord(proof, opened.size, opened.root, result.index, result.leaf); err != nil {
		return result, "", err
	}
	return result, opened.origin, json.Unmarshal(p.Entry, &result.entry)
}

func receiptCommand(files []string) error {
	data, err := os.ReadFile(files[1])
	if err != nil {
		return err
	}
	var receipt struct{ Intent, Outcome part }
	if err := json.Unmarshal(data, &receipt); err != nil {
		return err
	}
	intent, origin, err := prove(files[0], receipt.Intent)
	if err != nil {
		return fmt.Errorf("intent: %w", err)
	}
	outcome, _, err := prove(files[0], receipt.Outcome)
	if err != nil {
		return fmt.Errorf("outcome: %w", err)
	}
	switch {
	case intent.entry.T != "intent" || outcome.entry.T != "outcome":
		return errors.New("the entries are of other kinds")
	case intent.entry.Log != origin || outcome.entry.Log != origin:
		return errors.New("an entry is of another log")
	case outcome.index <= intent.index, outcome.entry.Intent.Index != intent.index,
		outcome.entry.Intent.Leaf != hex.EncodeToString(intent.leaf[:]):
		return errors.New("the outcome closes another intent")
	case outcome.entry.Res != "signed":
		return errors.New("nothing was signed")
	case intent.entry.Tbs != outcome.entry.Tbs || intent.entry.Key != outcome.entry.Key:
		return errors.New("intent and outcome name different digests or keys")
	}
	if len(files) == 3 {
		if err := checkSignature(files[2], outcome); err != nil {
			return err
		}
	}
	fmt.Println(intent.index, outcome.index, outcome.entry.Tbs)
	return nil
}

// checkSignature verifies the outcome's ECDSA signature with the public key of a PEM file.
func checkSignature(pemFile string, outcome proven) error {
	data, err := os.ReadFile(pemFile)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return errors.New("no PEM block")
	}
	if digest := sha256.Sum256(block.Bytes); hex.EncodeToString(digest[:]) != outcome.entry.Key.Spki {
		return errors.New("the receipt is of another key")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return errors.New("this command verifies ECDSA only")
	}
	tbs, err := hex.DecodeString(outcome.entry.Tbs)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(ec, tbs, outcome.entry.Sig) {
		return errors.New("the signature is wrong")
	}
	return nil
}

func consistencyCommand(files []string) error {
	var heads [2]checkpoint
	for place := range heads {
		signed, err := os.ReadFile(files[1+place])
		if err != nil {
			return err
		}
		if heads[place], err = openCheckpoint(files[0], signed); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(files[3])
	if err != nil {
		return err
	}
	var proof tlog.TreeProof
	for _, line := range strings.Fields(string(data)) {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	return tlog.CheckTree(proof, heads[1].size, heads[1].root, heads[0].size, heads[0].root)
}

// directory reads tiles as C2SP tlog-tiles lays them out: tile/<L>/<N>[.p/<W>].
type directory string

func (d directory) Height() int { return 8 }

func (d directory) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(tiles))
	for place, tile := range tiles {
		read, err := os.ReadFile(filepath.Join(string(d), strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
		if err != nil {
			return nil, err
		}
		data[place] = read
	}
	return data, nil
}

func (d directory) SaveTiles([]tlog.Tile, [][]byte) {}

// tilesCommand lets TileHashReader check the tiles against the checkpoint, and then every entry
// bundle (entries with 16-bit lengths before them) against the leaf hashes read from the tiles.
func tilesCommand(files []string) error {
	signed, err := os.ReadFile(files[1])
	if err != nil {
		return err
	}
	opened, err := openCheckpoint(files[0], signed)
	if err != nil {
		return err
	}
	reader := tlog.TileHashReader(tlog.Tree{N: opened.size, Hash: opened.root}, directory(files[2]))
	root, err := tlog.TreeHash(opened.size, reader)
	if err != nil {
		return err
	}
	if root != opened.root {
		return errors.New("the tiles lead to another root")
	}
	for start := int64(0); start < opened.size; start += 256 {
		end := start + 256
		if end > opened.size {
			end = opened.size
		}
		if err := checkBundle(files[2], reader, opened, start, end); err != nil {
			return fmt.Errorf("entries %d to %d: %w", start, end, err)
		}
	}
	fmt.Println(opened.size, "entries")
	return nil
}

func checkBundle(dir string, reader tlog.HashReader, opened checkpoint, start, end int64) error {
	tile := tlog.Tile{H: 8, L: -1, N: start / 256, W: int(end - start)}
	path := strings.Replace(tile.Path(), "tile/8/data/", "tile/entries/", 1)
	bundle, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		return err
	}
	var indexes []int64
	for index := start; index < end; index++ {
		indexes = append(indexes, tlog.StoredHashIndex(0, index))
	}
	leaves, err := reader.ReadHashes(indexes)
	if err != nil {
		return err
	}
	for place, leaf := range leaves {
		if len(bundle) < 2 || len(bundle) < 2+int(binary.BigEndian.Uint16(bundle)) {
			return errors.New("the bundle is cut")
		}
		length := 2 + int(binary.BigEndian.Uint16(bundle))
		if tlog.RecordHash(bundle[2:length]) != leaf {
			return fmt.Errorf("entry %d is not the one that was logged", start+int64(place))
		}
		bundle = bundle[length:]
	}
	if len(bundle) != 0 {
		return errors.New("bytes are left over")
	}
	// One proof of each bundle, made from the tiles alone.
	proof, err := tlog.ProveRecord(opened.size, start, reader)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, opened.size, opened.root, start, leaves[0])
}
