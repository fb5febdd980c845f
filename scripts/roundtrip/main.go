// roundtrip counts how many questions of one byte are answered a second, one
// after another, over one TCP connection. scripts/bench runs it on both sides
// of a network path; like iperf3 it only ever waits in the kernel, as Go's own
// waiting would take longer than many a path.
//
//	roundtrip serve PORT          answers whoever comes, one after another
//	roundtrip ask HOST:PORT TIME  prints the round trips a second, after some
//	                              that do not count
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// warmUp is for the neighbour tables, the caches and the congestion window.
const warmUp = 100 * time.Millisecond

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "roundtrip:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 3 && args[0] == "ask":
		d, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		rate, err := ask(args[1], d)
		if err != nil {
			return err
		}
		fmt.Printf("%.0f\n", rate)
		return nil
	}
	return errors.New("usage: roundtrip serve PORT | roundtrip ask HOST:PORT TIME")
}

func serve(port string) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		if err := answer(conn); err != nil {
			fmt.Fprintln(os.Stderr, "roundtrip:", err)
		}
	}
}

func answer(conn net.Conn) error {
	f, err := blocking(conn)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	var b [1]byte
	for {
		if err := transfer(syscall.Read, fd, b[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := transfer(syscall.Write, fd, b[:]); err != nil {
			return err
		}
	}
}

// ask returns the round trips a second, over d.
func ask(address string, d time.Duration) (float64, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return 0, err
	}
	f, err := blocking(conn)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fd := int(f.Fd())
	if _, _, err := trips(fd, warmUp); err != nil {
		return 0, err
	}
	n, took, err := trips(fd, d)
	if err != nil {
		return 0, err
	}
	return float64(n) / took.Seconds(), nil
}

// trips makes round trips for d, and says how many and how long they took.
func trips(fd int, d time.Duration) (n int, took time.Duration, err error) {
	var b [1]byte
	for start := time.Now(); took < d; took = time.Since(start) {
		if err := transfer(syscall.Write, fd, b[:]); err != nil {
			return 0, 0, err
		}
		if err := transfer(syscall.Read, fd, b[:]); err != nil {
			return 0, 0, err
		}
		n++
	}
	return n, took, nil
}

// blocking takes conn over as a file in blocking mode. A path that goes silent
// for 10 s is an error. TCP_NODELAY is Go's default.
func blocking(conn net.Conn) (*os.File, error) {
	defer conn.Close() // the file is a copy
	f, err := conn.(*net.TCPConn).File()
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	err = errors.Join(syscall.SetNonblock(fd, false),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 10}))
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// transfer moves the one byte of b; io.EOF if the other side is gone.
func transfer(call func(int, []byte) (int, error), fd int, b []byte) error {
	for {
		n, err := call(fd, b)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			return nil
		}
	}
}
