package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"underlay/driver"
	"underlay/internal/store"
	"underlay/ipam"
	"underlay/ipam/lease"
)

// ExportPath answers all records of the state file, an Export.
const ExportPath = "/Underlay.Export"

// Export is all that the state file has, as it was at one moment. Import makes a
// state file of it.
type Export struct {
	Format   int       `json:"format"`  // of the records; see store.Format
	Version  string    `json:"version"` // of the underlay that wrote it
	Exported time.Time `json:"exported"`
	// Records are by bucket and key. A record that is a JSON object is one here, and
	// another is a string.
	Records map[string]map[string]json.RawMessage `json:"records"`
}

func (p *Plugin) routeExport() {
	at(p.server, ExportPath, func(context.Context, none) (Export, error) {
		e := Export{Format: store.Format, Version: p.config.Version, Exported: p.config.now(), Records: map[string]map[string]json.RawMessage{}}
		err := p.parts.store.All(func(bucket string, key, value []byte) error {
			if e.Records[bucket] == nil {
				e.Records[bucket] = map[string]json.RawMessage{}
			}
			text := json.RawMessage(bytes.Clone(value))
			if !bytes.HasPrefix(value, []byte("{")) || !json.Valid(value) {
				var err error
				if text, err = json.Marshal(string(value)); err != nil {
					return err
				}
			}
			e.Records[bucket][string(key)] = text
			return nil
		})
		return e, err
	})
}

// Imported is what a state file was made of.
type Imported struct {
	Records  int
	Exported time.Time // what has happened since is not in it
}

// Import makes the state file of a folder that has none of an Export. It is done only
// if a plugin could start with it.
func Import(folder string, from io.Reader) (Imported, error) {
	path := filepath.Join(folder, StateFile)
	if info, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return Imported{}, fmt.Errorf("there is no folder %s: name that of the plugin's state file", folder)
	}
	if _, err := os.Lstat(path); err == nil {
		return Imported{}, fmt.Errorf("%s is there already: disable the plugin, and move that file away first", path)
	}
	var e Export
	dec := json.NewDecoder(from)
	if err := dec.Decode(&e); err != nil {
		return Imported{}, fmt.Errorf("the file is no export of underlay's: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Imported{}, errors.New("the file is no export of underlay's: more follows its end")
	}
	if e.Format == 0 || e.Records == nil {
		return Imported{}, errors.New("the file is no export of underlay's: it has no format number, or no records")
	}
	var changes []store.Change
	for _, bucket := range slices.Sorted(maps.Keys(e.Records)) {
		for _, key := range slices.Sorted(maps.Keys(e.Records[bucket])) {
			value, err := recordOf(e.Records[bucket][key])
			if err != nil {
				return Imported{}, fmt.Errorf("record %s/%s: %w", bucket, key, err)
			}
			changes = append(changes, store.Change{Bucket: bucket, Key: []byte(key), Value: value})
		}
	}
	if err := tryImport(e.Format, changes); err != nil {
		return Imported{}, err
	}
	if err := store.Create(path, e.Format, changes); err != nil {
		return Imported{}, fmt.Errorf("state file %s: %w", path, err)
	}
	return Imported{len(changes), e.Exported}, nil
}

// recordOf is what the state file has for a record of an export.
func recordOf(text json.RawMessage) ([]byte, error) {
	if bytes.HasPrefix(text, []byte("{")) {
		var b bytes.Buffer
		err := json.Compact(&b, text)
		return b.Bytes(), err
	}
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, errors.New("it is neither an object nor a string")
	}
	return []byte(s), nil
}

// tryImport loads records from a file of their own, as a plugin that starts does.
func tryImport(format int, records []store.Change) (err error) {
	folder, err := os.MkdirTemp("", "underlay-import-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, StateFile)
	if err := store.Create(path, format, records); err != nil {
		return err
	}
	st, err := store.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if aside := st.Aside(); aside != nil {
		return aside.Cause
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	d, err := driver.New(nil, st, driver.Config{Log: quiet})
	if err != nil {
		return err
	}
	defer d.Close()
	i, err := ipam.New(st, d, ipam.Config{})
	if err != nil {
		return err
	}
	defer i.Close()
	_, err = lease.Open(lease.Config{Store: st, Log: logrus.NewEntry(quiet)})
	return err
}
