// Command fsck checks a published log with Tessera's own fsck: the checkpoint, every tile and every entry bundle.
//
//	fsck VKEY-FILE DIRECTORY-OR-URL
//
// Tessera's command ends with 0 whatever it found; this one with 1 where the log is not sound.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: fsck VKEY-FILE DIRECTORY-OR-URL")
		os.Exit(2)
	}
	if err := check(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	fmt.Println("sound")
}

func check(vkeyFile, place string) error {
	vkey, err := os.ReadFile(vkeyFile)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(string(vkey)))
	if err != nil {
		return err
	}
	var source fsck.Fetcher = &client.FileFetcher{Root: place}
	if strings.HasPrefix(place, "http") {
		root, err := url.Parse(place)
		if err != nil {
			return err
		}
		if source, err = client.NewHTTPFetcher(root, nil); err != nil {
			return err
		}
	}
	return fsck.New(verifier.Name(), verifier, source, hashLeaves, fsck.Opts{N: 2}).Check(context.Background())
}

func hashLeaves(bundle []byte) ([][]byte, error) {
	var entries api.EntryBundle
	if err := entries.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var hashes [][]byte
	for _, entry := range entries.Entries {
		hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(entry))
	}
	return hashes, nil
}
