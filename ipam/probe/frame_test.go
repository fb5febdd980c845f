package probe

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	mine   = mac{0x02, 0, 0, 0, 0, 0x01}
	theirs = mac{0x02, 0, 0, 0, 0, 0x02}
)

// golden turns hex with spaces into bytes.
func golden(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	goldARPProbe = `ffffffffffff 020000000001 0806 0001 0800 06 04 0001
		020000000001 00000000 000000000000 0a090005`
	goldARPAnnouncement = `ffffffffffff 020000000002 0806 0001 0800 06 04 0001
		020000000002 0a090005 000000000000 0a090005`
	goldSolicitation = `3333ff345678 020000000001 86dd 60000000 0018 3a ff
		00000000000000000000000000000000 ff0200000000000000000001ff345678
		87 00 be45 00000000 fd000009000000000000000012345678`
	goldAdvertisement = `333300000001 020000000002 86dd 60000000 0020 3a ff
		fd000009000000000000000012345678 ff020000000000000000000000000001
		88 00 8931 20000000 fd000009000000000000000012345678 02 01 020000000002`
)

func TestBuild(t *testing.T) {
	four, six := netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("fd00:9::1234:5678")
	ns, err := solicitation(mine, six)
	if err != nil {
		t.Fatal(err)
	}
	na, err := advertisement(theirs, six)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{"ARP probe", arpRequest(mine, netip.IPv4Unspecified(), four), goldARPProbe},
		{"ARP announcement", arpRequest(theirs, four, four), goldARPAnnouncement},
		{"solicitation", ns, goldSolicitation},
		{"advertisement", na, goldAdvertisement},
	} {
		if want := golden(t, tc.want); !bytes.Equal(tc.got, want) {
			t.Errorf("%s:\n got %x\nwant %x", tc.name, tc.got, want)
		}
	}
}

// mended gives an IPv6 frame the checksum that it should have.
func mended(b []byte) []byte {
	b[56], b[57] = 0, 0
	c := ^sum(b[22:54], b[54:])
	b[56], b[57] = byte(c>>8), byte(c)
	return b
}

func TestParse(t *testing.T) {
	with := func(gold string, change func(b []byte) []byte) []byte { return change(golden(t, gold)) }
	set := func(at int, to ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], to); return b }
	}
	six := "fd00:9::1234:5678"
	for _, tc := range []struct {
		name  string
		frame []byte
		addr  string // "" is a frame that says nothing
		mac   mac
		claim bool
	}{
		{"ARP probe", golden(t, goldARPProbe), "10.9.0.5", mine, true},
		{"ARP announcement", golden(t, goldARPAnnouncement), "10.9.0.5", theirs, false},
		{"ARP reply to a probe", golden(t, `020000000001 020000000002 0806 0001 0800 06 04 0002
			020000000002 0a090007 020000000001 00000000`), "10.9.0.7", theirs, false},
		{"ARP request", golden(t, `ffffffffffff 020000000002 0806 0001 0800 06 04 0001
			020000000002 0a090007 000000000000 0a090009`), "10.9.0.7", theirs, false},
		{"ARP with padding", append(golden(t, goldARPProbe), make([]byte, 18)...), "10.9.0.5", mine, true},
		{"ARP through a bridge that shows itself", with(goldARPAnnouncement, set(6, mine[:]...)), "10.9.0.5", theirs, false},
		{"solicitation as in DAD", golden(t, goldSolicitation), six, mine, true},
		{"advertisement", golden(t, goldAdvertisement), six, theirs, false},
		{"advertisement without an option", mended(golden(t, `333300000001 020000000001 86dd 60000000 0018 3a ff
			fd000009000000000000000012345678 ff020000000000000000000000000001
			88 00 0000 20000000 fd000009000000000000000012345678`)), six, mine, false},
		{"solicitation from an address", mended(golden(t, `3333ff345678 020000000001 86dd 60000000 0020 3a ff
			fd000009000000000000000000000007 ff0200000000000000000001ff345678
			87 00 0000 00000000 fd000009000000000000000012345678 01 01 020000000002`)), "fd00:9::7", theirs, false},
		{"IPv6 with a trailer", append(golden(t, goldAdvertisement), 1, 2, 3), six, theirs, false},

		{"empty", nil, "", mac{}, false},
		{"cut", golden(t, goldARPProbe)[:41], "", mac{}, false},
		{"ARP of another medium", with(goldARPProbe, set(14, 0, 6)), "", mac{}, false},
		{"RARP", with(goldARPProbe, set(20, 0, 3)), "", mac{}, false},
		{"ARP for nothing", with(goldARPProbe, set(38, 0, 0, 0, 0)), "", mac{}, false},
		{"ARP from a group", with(goldARPAnnouncement, set(22, 3)), "", mac{}, false},
		{"ARP from nobody", with(goldARPAnnouncement, set(22, 0, 0, 0, 0, 0, 0)), "", mac{}, false},
		{"frame from a group", with(goldARPAnnouncement, set(6, 3)), "", mac{}, false},
		{"ARP of a multicast address", with(goldARPAnnouncement, set(28, 224)), "", mac{}, false},
		{"ARP of the broadcast address", with(goldARPAnnouncement, set(28, 255, 255, 255, 255)), "", mac{}, false},
		{"IPv4", with(goldARPProbe, set(12, 8, 0)), "", mac{}, false},
		{"tagged", with(goldARPProbe, set(12, 0x81, 0)), "", mac{}, false},
		{"routed", with(goldAdvertisement, set(21, 254)), "", mac{}, false},
		{"bad checksum", with(goldAdvertisement, set(56, 0)), "", mac{}, false},
		{"cut advertisement", golden(t, goldAdvertisement)[:80], "", mac{}, false},
		{"advertisement of a group", mended(with(goldAdvertisement, set(62, 0xff))), "", mac{}, false},
		{"option of no length", mended(with(goldAdvertisement, set(79, 0))), "", mac{}, false},
		{"DAD with a link-layer option", mended(golden(t, `3333ff345678 020000000001 86dd 60000000 0020 3a ff
			00000000000000000000000000000000 ff0200000000000000000001ff345678
			87 00 0000 00000000 fd000009000000000000000012345678 01 01 020000000002`)), "", mac{}, false},
		{"router solicitation", mended(with(goldSolicitation, set(54, 133))), "", mac{}, false},
	} {
		s, ok := parse(tc.frame)
		if ok != (tc.addr != "") {
			t.Errorf("%s: ok is %t", tc.name, ok)
		} else if ok && (s.addr.String() != tc.addr || s.mac != tc.mac || s.claim != tc.claim) {
			t.Errorf("%s: %s is at %x, claim %t", tc.name, s.addr, s.mac, s.claim)
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, gold := range []string{goldARPProbe, goldARPAnnouncement, goldSolicitation, goldAdvertisement} {
		f.Add(golden(f, gold))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 58 { // else hardly any neighbour message gets past the checksum
			if n := len(b) - etherLen - ip6Len; n < 1<<16 {
				b[18], b[19] = byte(n>>8), byte(n)
			}
			mended(b)
		}
		s, ok := parse(b)
		if ok && (!unicast(s.addr) || !s.mac.one() || s.addr.Zone() != "") {
			t.Errorf("%x: %+v", b, s)
		}
	})
}

func TestThrottle(t *testing.T) {
	var th throttle
	at := func(n int) *sight {
		return &sight{addr: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), mac: theirs}
	}
	told := 0
	for now := time.Duration(0); now < time.Minute; now += 10 * time.Millisecond {
		if th.fresh(at(1), now) {
			told++
		}
	}
	if told != 12 {
		t.Errorf("a word that is repeated for a minute was told %d times", told)
	}
	claim, moved := *at(1), *at(1)
	claim.claim, moved.mac = true, mine
	if !th.fresh(&claim, time.Minute) || !th.fresh(&moved, time.Minute) {
		t.Error("another word was taken for a repetition")
	}
	now := time.Hour
	for n := range 3000 { // within what is remembered
		th.fresh(at(n), now)
	}
	for n := range 3000 {
		if th.fresh(at(n), now+quiet-1) {
			t.Fatalf("word %d was forgotten", n)
		}
	}
	for n := range 1 << 18 {
		th.fresh(at(n), now+2*quiet)
		if all := len(th.young) + len(th.old); all > remembered {
			t.Fatalf("%d words are remembered", all)
		}
	}
}

func testTap(told func(sight)) *tap {
	return &tap{mac: mine, opened: time.Now(), told: told, ours: func(mac) bool { return false }, over: make(chan struct{}), asked: map[netip.Addr][]*question{}}
}

// BenchmarkHear is the cost of a frame once the kernel has handed it over.
func BenchmarkHear(b *testing.B) {
	bench := func(name string, frame []byte, next func(n int)) {
		b.Run(name, func(b *testing.B) {
			t := testTap(func(sight) {})
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				next(n)
				t.hear(frame)
			}
		})
	}
	arp, na := golden(b, goldARPAnnouncement), golden(b, goldAdvertisement)
	ever := golden(b, goldARPAnnouncement)
	bench("arp", arp, func(int) {})
	bench("arp-ever-new", ever, func(n int) { ever[29], ever[30], ever[31] = byte(n>>16), byte(n>>8), byte(n) })
	bench("ndp", na, func(int) {})
}
