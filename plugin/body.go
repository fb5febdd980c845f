package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
)

const (
	// maxBody is the most bytes of a call's body, not counting maxPorts.
	maxBody = 1 << 20
	// maxPorts is the most bytes of what is read over. A container that publishes
	// all of its 65,535 ports has 7 MB of it.
	maxPorts = 8 << 20
	// maxDepth is the deepest that a body may be nested; Docker's are 5 deep.
	maxDepth = 16
)

// unread are Docker's lists of a container's ports (moby,
// daemon/libnetwork/netlabel). They may be most of a body, and say nothing to
// underlay, which publishes none.
var unread = map[string]bool{
	"com.docker.network.portmap":               true,
	"com.docker.network.endpoint.exposedports": true,
}

// badRequest is an error of the caller's.
type badRequest struct{ error }

func (b badRequest) Unwrap() error { return b.error }

var (
	// errEmpty is what dockerd's retry gets: it repeats a call whose connection
	// broke, but without the body, which it has read to its end.
	errEmpty = badRequest{errors.New("the call came without a body; it may be a repeat of one whose connection broke: try the docker command again")}

	errLarge = badRequest{fmt.Errorf("the call's body is over %d bytes", maxBody)}
	errSlow  = badRequest{fmt.Errorf("the call's body did not come within %v; try the docker command again", deadline)}
)

// status is the one that an error is answered with.
func status(err error) int {
	switch {
	case errors.Is(err, errLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errSlow):
		return http.StatusRequestTimeout
	case errors.As(err, new(badRequest)):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

// decode reads a call's body into req. It refuses more than the standard
// library does: what is too long or too deep, a key given twice, what is no text,
// and what follows the first value.
func decode[Req any](from io.Reader, req *Req) error {
	_, nothing := any(req).(*none)
	in := &limited{from: from, limit: maxBody}
	d := digest{in: in, dec: json.NewDecoder(in)}
	d.dec.UseNumber()
	switch err := d.body(nothing); {
	case in.err != nil && !errors.Is(in.err, io.EOF):
		if errors.Is(in.err, errLarge) {
			return errLarge
		}
		if errors.Is(in.err, os.ErrDeadlineExceeded) {
			return errSlow
		}
		return badRequest{fmt.Errorf("the call's body broke off: %w", in.err)}
	case errors.Is(err, errEmpty):
		if nothing {
			return nil
		}
		return err
	case err != nil:
		return badRequest{fmt.Errorf("the call's body is not understood: %w", err)}
	}
	if nothing {
		return nil
	}
	if err := json.Unmarshal(d.out.Bytes(), req); err != nil {
		return badRequest{fmt.Errorf("the call's body is not understood: %w", err)}
	}
	return nil
}

// limited reads up to limit bytes, and keeps the error that ended it.
type limited struct {
	from        io.Reader
	read, limit int64
	err         error // io.EOF, errLarge, or the connection's
}

func (l *limited) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.from.Read(p)
	if l.read += int64(n); l.read > l.limit {
		err = errLarge
	}
	l.err = err
	return n, err
}

// digest is what is kept of a body while it is read.
type digest struct {
	in   *limited
	dec  *json.Decoder
	out  bytes.Buffer // JSON
	over bool         // what is read over is not kept
}

// body reads all of a body, an object; null also, where nothing is wanted.
func (d *digest) body(nothing bool) error {
	first, err := d.dec.Token()
	switch {
	case errors.Is(err, io.EOF):
		return errEmpty
	case err != nil:
		return err
	case first == json.Delim('{'):
		err = d.value(first, 1)
	case first != nil || !nothing:
		return errors.New("it is no JSON object")
	}
	if err != nil {
		return err
	}
	if _, err := d.dec.Token(); err != io.EOF {
		return errors.New("more follows its end")
	}
	return nil
}

// value keeps the value that begins with a token, the depth-th of those that
// it is in.
func (d *digest) value(token json.Token, depth int) error {
	open, isOpen := token.(json.Delim)
	if !isOpen {
		return d.scalar(token)
	}
	if depth > maxDepth {
		return fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	d.keep(byte(open))
	keys := map[string]bool{}
	for n := 0; d.dec.More(); n++ {
		if n > 0 {
			d.keep(',')
		}
		read := d.value
		if open == '{' {
			token, err := d.token()
			if err != nil {
				return err
			}
			key, _ := token.(string)
			if keys[key] {
				return fmt.Errorf("%s is there twice", clip(key))
			}
			keys[key] = true
			if err := d.scalar(key); err != nil {
				return err
			}
			d.keep(':')
			if unread[key] {
				read = d.ports
			}
		}
		token, err := d.token()
		if err == nil {
			err = read(token, depth+1)
		}
		if err != nil {
			return err
		}
	}
	end, err := d.token()
	if err != nil {
		return err
	}
	shut, _ := end.(json.Delim)
	d.keep(byte(shut))
	return nil
}

// ports reads over a list and keeps null. It does not count as part of the body.
func (d *digest) ports(token json.Token, depth int) error {
	if token != json.Delim('[') || d.over {
		return d.value(token, depth)
	}
	from, limit := d.dec.InputOffset(), d.in.limit
	d.in.limit, d.over = maxBody+maxPorts, true
	if err := d.value(token, depth); err != nil {
		return err
	}
	d.in.limit, d.over = min(limit+d.dec.InputOffset()-from, maxBody+maxPorts), false
	if d.in.read > d.in.limit { // what was read ahead of the list's end
		d.in.err = errLarge
		return errLarge
	}
	return d.scalar(nil)
}

func (d *digest) keep(b byte) {
	if !d.over {
		d.out.WriteByte(b)
	}
}

func (d *digest) token() (json.Token, error) {
	token, err := d.dec.Token()
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return token, err
}

func (d *digest) scalar(token json.Token) error {
	// The decoder reads bytes that are no UTF-8 as U+FFFD.
	if text, ok := token.(string); ok && strings.ContainsAny(text, "\x00\ufffd") {
		return fmt.Errorf("%s is no text", clip(text))
	}
	if d.over {
		return nil
	}
	text, err := json.Marshal(token)
	d.out.Write(text)
	return err
}

// clip quotes the beginning of a text.
func clip(text string) string {
	const most = 40
	if len(text) > most {
		text = text[:most] + "…"
	}
	return fmt.Sprintf("%q", text)
}
