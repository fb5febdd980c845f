//go:build faults

package killtest

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	only = flag.String("kill", "", "the number or the name of one point, to be killed at alone")
	side = flag.Int("kill.at-once", 12, "how many runs there are at a time")
)

// step is what a user does.
type step struct {
	name string
	do   func(*dockerd) error
}

var lan = []string{"192.168.50.0/24", "fd00:50::/64"}

// steps are one run.
var steps = []step{
	{"boot", (*dockerd).boot},
	{"create lan", func(d *dockerd) error { return d.createNetwork("lan", "eth0", lan...) }},
	{"run fixed", func(d *dockerd) error { return d.start("fixed", "lan", "192.168.50.70") }},
	{"run any", func(d *dockerd) error { return d.start("any", "lan", "") }},
	{"create other", func(d *dockerd) error { return d.createNetwork("other", "eth1", "10.9.0.0/24") }},
	{"connect fixed to other", func(d *dockerd) error { return d.connect("fixed", "other") }},
	{"stop any", func(d *dockerd) error { d.stopContainer("any"); return nil }},
	{"start any", func(d *dockerd) error { return d.start("any", "lan", "") }},
	{"restart dockerd with live-restore", func(d *dockerd) error { return d.restart(true) }},
	{"restart the plugin, any having stopped meanwhile", func(d *dockerd) error {
		d.stop(syscall.SIGTERM)
		d.stopContainer("any")
		return d.machine.start()
	}},
	{"start any again", func(d *dockerd) error { return d.start("any", "lan", "") }},
	{"restart dockerd", func(d *dockerd) error { return d.restart(false) }},
	{"start fixed", func(d *dockerd) error { return d.start("fixed", "lan", "192.168.50.70") }},
	{"connect fixed to other again", func(d *dockerd) error { return d.connect("fixed", "other") }},
	{"disconnect fixed from other", func(d *dockerd) error {
		c := d.containers["fixed"]
		d.leave(c, c.endpoints[1])
		return nil
	}},
	{"stop fixed", func(d *dockerd) error { d.stopContainer("fixed"); return nil }},
	{"remove other", func(d *dockerd) error { d.removeNetwork("other"); return nil }},
	{"remove lan", func(d *dockerd) error { d.removeNetwork("lan"); return nil }},
}

// settle is how long the plugin may take for what it frees after its grace.
const settle = grace + 3*time.Second

// run goes through all steps on a machine of its own. Where the plugin is killed,
// the step is ended as dockerd would, and if it has failed, done again as a user
// would; then all must be well.
func run(name, fault string) (points []string, killed bool, err error) {
	m, err := newMachine(name, fault)
	if err != nil {
		return nil, false, err
	}
	defer m.close()
	d := &dockerd{machine: m, networks: map[string]*network{}, containers: map[string]*container{}}
	defer func() {
		for _, c := range d.containers {
			c.drop()
		}
		if err != nil {
			err = fmt.Errorf("%w\nthe plugin's words:\n%s", err, m.logs())
		}
	}()
	before, err := d.picture()
	if err != nil {
		return nil, false, err
	}
	if err := m.start(); err != nil {
		return nil, false, err
	}
	for _, s := range steps {
		had := m.isKilled()
		err := s.do(d)
		now := m.isKilled() && !had
		switch {
		case err == nil && !now:
			continue
		case err != nil && !now:
			return nil, false, fmt.Errorf("step %q failed: %w", s.name, err)
		case err != nil:
			if err := d.wholeAfter(before); err != nil {
				return nil, true, fmt.Errorf("step %q, which failed (%w)", s.name, err)
			}
			if again := s.do(d); again != nil {
				return nil, true, fmt.Errorf("step %q failed (%w), and when done again: %w", s.name, err, again)
			}
		}
		if err := d.wholeAfter(before); err != nil {
			return nil, true, fmt.Errorf("after step %q: %w", s.name, err)
		}
		break
	}
	points = m.points()
	for _, name := range sorted(d.containers) {
		d.stopContainer(name)
	}
	for _, name := range sorted(d.networks) {
		d.removeNetwork(name)
	}
	if err := d.wholeAfter(before); err != nil {
		return points, m.isKilled(), fmt.Errorf("with all removed: %w", err)
	}
	return points, m.isKilled(), nil
}

// wholeAfter looks at once whether containers answer, and when leftovers must
// have gone, at all.
func (d *dockerd) wholeAfter(before string) error {
	if err := d.reached(); err != nil {
		return fmt.Errorf("at once: %w", err)
	}
	if d.isKilled() {
		time.Sleep(grace + grace/2) // what is freed wrongly is freed by then, too
	}
	if err := d.settled(settle); err != nil {
		return fmt.Errorf("not as dockerd has it: %w", err)
	}
	if err := d.reached(); err != nil {
		return err
	}
	if len(d.networks) > 0 || len(d.containers) > 0 {
		return nil
	}
	after, err := d.picture()
	if err == nil && after != before {
		err = errors.New("left in the host:" + difference(before, after))
	}
	return err
}

// TestKill kills the plugin at each point in turn.
func TestKill(t *testing.T) {
	var points []string
	for i := range 2 { // what is done in the background is not at the same points each time
		found, _, err := run(fmt.Sprintf("r%d", i), "")
		if err != nil {
			t.Fatalf("without a kill: %v", err)
		}
		if i == 0 {
			points = found
		} else {
			points = slices.DeleteFunc(points, func(p string) bool { return !slices.Contains(found, p) })
		}
	}
	chosen := make([]int, 0, len(points))
	for i, p := range points {
		if *only == "" || *only == p || *only == fmt.Sprint(i+1) {
			chosen = append(chosen, i)
		}
	}
	if len(chosen) == 0 {
		t.Fatalf("there is no point %s", *only)
	}
	type outcome struct {
		killed bool
		err    error
		took   time.Duration
	}
	outcomes := make([]outcome, len(points))
	var wg sync.WaitGroup
	slots := make(chan struct{}, *side)
	for _, i := range chosen {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			begun := time.Now()
			o := &outcomes[i]
			_, o.killed, o.err = run(fmt.Sprintf("k%d", i+1), points[i])
			o.took = time.Since(begun)
		}()
	}
	wg.Wait()
	reached := 0
	for _, i := range chosen {
		o := outcomes[i]
		t.Run(fmt.Sprintf("%d %s", i+1, strings.ReplaceAll(points[i], "/", " ")), func(t *testing.T) {
			if o.err != nil {
				t.Fatalf("replay with scripts/kill %d: %v", i+1, o.err)
			}
			if !o.killed {
				t.Skip("not passed in this run")
			}
			reached++
		})
	}
	t.Logf("killed at %d of %d points", reached, len(points))
	if *only == "" && reached < 200 {
		t.Errorf("only %d points were reached, want 200", reached)
	}
}
