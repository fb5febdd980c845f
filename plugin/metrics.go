package plugin

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"underlay/driver"
	"underlay/internal/ui"
	"underlay/netlinkutil"
)

// MetricsPath is where a GET answers the metrics, in Prometheus's text format.
const MetricsPath = "/metrics"

// The outcomes of a call.
const (
	outcomeOK      = "ok"
	outcomeRefused = "refused" // it was malformed
	outcomeFailed  = "failed"
	outcomeLate    = "late" // its deadline has ended it
)

func outcomeOf(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return outcomeOK
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return outcomeLate
	case status(err) < http.StatusInternalServerError:
		return outcomeRefused
	}
	return outcomeFailed
}

// metrics counts what happens, and looks up the rest when it is asked: nothing wakes
// up for it.
type metrics struct {
	plugin   *Plugin
	registry *prometheus.Registry
	asking   chan struct{} // a place for each that asks
	calls    *prometheus.HistogramVec
	late     *prometheus.CounterVec
	links    *prometheus.CounterVec
	server   *http.Server // on TCP; nil: there is none
	addr     net.Addr     // of that
	page     *ui.UI       // beside the metrics there
}

func newMetrics(p *Plugin) *metrics {
	m := &metrics{
		page: ui.New(view{p}), plugin: p, registry: prometheus.NewRegistry(), asking: make(chan struct{}, 4),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "underlay_call_duration_seconds", Help: "How long calls took, by call and outcome (ok, refused, failed or late).",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"call", "outcome"}),
		late: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "underlay_calls_late_total", Help: "Calls that their deadline has ended, by call: there from the start, at 0.",
		}, []string{"call"}),
		links: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "underlay_link_events_total", Help: "Changes of the host's links, by kind (up, down, gone or lost).",
		}, []string{"kind"}),
	}
	for _, kind := range []string{"up", "down", "gone", "lost"} {
		m.links.WithLabelValues(kind)
	}
	m.registry.MustRegister(
		m.calls, m.late, m.links, collector{p},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// ServeHTTP answers with all metrics. Few are looked up at a time: whoever asks in
// vain asks again.
func (m *metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case m.asking <- struct{}{}:
	default:
		http.Error(w, "others are asking for the metrics; try again", http.StatusServiceUnavailable)
		return
	}
	type lookup struct {
		families []*dto.MetricFamily
		err      error
	}
	found := make(chan lookup, 1)
	go func() {
		defer func() { <-m.asking }()
		families, err := m.registry.Gather()
		found <- lookup{families, err}
	}()
	late := time.NewTimer(deadline)
	defer late.Stop()
	select {
	case l := <-found:
		if l.err != nil {
			m.plugin.config.Log.Warnf("metrics: %v", l.err)
		}
		format := expfmt.NewFormat(expfmt.TypeTextPlain)
		w.Header().Set("Content-Type", string(format))
		enc := expfmt.NewEncoder(w, format)
		for _, f := range l.families {
			if enc.Encode(f) != nil {
				return // the client has gone
			}
		}
	case <-late.C:
		http.Error(w, "the metrics were not to be had in time", http.StatusServiceUnavailable)
	case <-r.Context().Done():
	}
}

// expect has a call's late ones counted from 0: the first one would else be no increase.
func (m *metrics) expect(path string) { m.late.WithLabelValues(path[1:]) }

func (m *metrics) called(path, outcome string, took time.Duration) {
	m.calls.WithLabelValues(path[1:], outcome).Observe(took.Seconds())
	if outcome == outcomeLate {
		m.late.WithLabelValues(path[1:]).Inc()
	}
}

func (m *metrics) linkChanged(c netlinkutil.Change) {
	kind := "up"
	switch {
	case c.Lost:
		kind = "lost"
	case c.Gone:
		kind = "gone"
	case !c.Link.Carrier:
		kind = "down"
	}
	m.links.WithLabelValues(kind).Inc()
}

// ParseMetricsAddr reads where metrics are served on TCP: an address and a port, or a
// port alone, which is then this host's own to ask. "" is nowhere.
func ParseMetricsAddr(text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, nil
	}
	if port, err := strconv.ParseUint(strings.TrimPrefix(text, ":"), 10, 16); err == nil && port != 0 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)), nil
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil || addr.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no port, and no address with a port; write it as 9323 for this host alone, or as 192.168.50.2:9323", text)
	}
	return addr, nil
}

// listen serves the metrics on TCP, too. That they cannot be is no reason not to
// serve Docker.
func (m *metrics) listen(on netip.AddrPort) {
	if !on.IsValid() {
		return
	}
	log := m.plugin.config.Log
	// The host may get its address later than this.
	free := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	}}
	l, err := free.Listen(m.plugin.ctx, "tcp", on.String())
	if err != nil {
		log.Errorf("metrics are not served on METRICS_ADDR=%v: %v; free that port or set another, then docker plugin disable -f and enable it, or systemctl restart underlay", on, err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+MetricsPath, m.page.Guard(m, !on.Addr().IsLoopback()))
	mux.Handle("/", m.page)
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength != 0 { // chunked: -1
				w.Header().Set("Connection", "close")
				http.Error(w, "nothing here takes a body", http.StatusBadRequest)
				return
			}
			busy(r.Context())
			mux.ServeHTTP(w, r)
		}), ConnContext: withVisit, ConnState: answered,
		ReadHeaderTimeout: deadline, ReadTimeout: deadline, WriteTimeout: answering, IdleTimeout: idle, MaxHeaderBytes: maxHeader,
		ErrorLog: stdlog.New(log.WriterLevel(logrus.DebugLevel), "", 0),
	}
	m.server, m.addr = s, l.Addr()
	log.Infof("metrics are served on http://%v%s, and the map of addresses on http://%[1]v/", l.Addr(), MetricsPath)
	m.plugin.workers.Go(func() {
		if err := s.Serve(newDoor(l, ui.Most+maxScrapers)); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Errorf("metrics are no longer served on %v: %v", on, err)
		}
	})
}

// maxScrapers is the most connections at a time to the metrics' own port, besides the
// page's streams.
const maxScrapers = 16

func (m *metrics) close() {
	m.page.Close()
	if m.server != nil {
		_ = m.server.Close()
	}
}

// collector looks up what the plugin has.
type collector struct{ plugin *Plugin }

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("underlay_"+name, help, labels, nil)
}

// What is looked up.
var (
	buildInfo     = gauge("build_info", "1, with the version as a label.", "version", "goversion")
	stateLoaded   = gauge("state_loaded", "1 once the state is loaded; what is counted from it is absent before.")
	stateBytes    = gauge("state_file_bytes", "Size of the state file.")
	stateAside    = gauge("state_file_set_aside", "1 if a damaged state file of before is still there.")
	networks      = gauge("networks", "Networks.")
	endpoints     = gauge("endpoints", "Endpoints.")
	parentUp      = gauge("parent_up", "1 if the parent is there and has a carrier.", "parent")
	parentWaits   = gauge("parent_waiting", "1 if networks wait for the parent, which is not there.", "parent")
	poolSize      = gauge("pool_size", "Addresses of the pool that could be given out.", "subnet")
	poolAddresses = gauge("pool_addresses", "Addresses of the pool by what they are used for; they make its size.", "subnet", "use")
	rangeSize     = gauge("range_size", "Addresses of the range (--ip-range) that could be given out; of pools with none it is absent.", "subnet", "range")
	rangeLeft     = gauge("range_addresses", "Addresses of the range that are left, by use (free or resting).", "subnet", "range", "use")
	poolBlind     = gauge("pool_blind", "1 if the pool's LAN could not be asked the last time.", "subnet")
	conflicts     = gauge("conflicts", "Addresses of containers that another machine has, too.", "subnet")
	probeUp       = gauge("probe_up", "1 if the link is listened on and addresses can be asked for there.", "link")
	leaseCount    = gauge("leases", "Containers' leases by state (bound, drifted or lost).", "link", "state")
	reconciles    = gauge("reconciles_total", "Reconciles of records and kernel.")
	mended        = gauge("reconcile_mended_total", "Things that reconciles have mended.")
	unmended      = gauge("reconcile_unmended", "Things that the last full reconcile could not mend.")
	reconciledAt  = gauge("reconcile_last_timestamp_seconds", "When the last full reconcile was.")
	descs         = []*prometheus.Desc{
		buildInfo, stateLoaded, stateBytes, stateAside, networks, endpoints, parentUp, parentWaits, poolSize, poolAddresses, rangeSize, rangeLeft, poolBlind,
		conflicts, probeUp, leaseCount, reconciles, mended, unmended, reconciledAt,
	}
)

// Describe lists what there may be.
func (c collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range descs {
		to <- d
	}
}

// Collect looks everything up, in a goroutine of the registry's.
func (c collector) Collect(to chan<- prometheus.Metric) {
	if _, err := caught(func() (none, error) { c.collect(to); return none{}, nil }, c.plugin.panicked); err != nil {
		to <- prometheus.NewInvalidMetric(buildInfo, err)
	}
}

func (c collector) collect(to chan<- prometheus.Metric) {
	p := c.plugin
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		m, err := prometheus.NewConstMetric(d, kind, v, labels...)
		if err != nil { // a label is no UTF-8
			m = prometheus.NewInvalidMetric(d, err)
		}
		to <- m
	}
	set := func(d *prometheus.Desc, v float64, labels ...string) { put(d, prometheus.GaugeValue, v, labels...) }
	set(buildInfo, 1, p.config.Version, runtime.Version())
	if !p.isLoaded() {
		set(stateLoaded, 0)
		return
	}
	set(stateLoaded, 1)
	s := p.status()
	set(stateBytes, float64(s.State.Bytes))
	set(stateAside, one(s.State.SetAside != ""))
	set(networks, float64(s.Networks))
	set(endpoints, float64(s.Endpoints))
	for _, l := range s.Parents {
		set(parentUp, one(l.State == driver.ParentUp), l.Name)
		set(parentWaits, one(l.State == driver.ParentWaiting), l.Name)
	}
	for _, u := range s.Pools {
		subnet := u.Subnet.String()
		set(poolSize, float(u.Size), subnet)
		for _, of := range []struct {
			use string
			n   float64
		}{
			{"containers", float64(u.Containers)}, {"gateways", float64(u.Gateways)}, {"excluded", float(u.Excluded)}, {"others", float64(u.Others)},
			{"reserved", float64(u.Reserved)}, {"resting", float64(u.Resting)}, {"free", float(u.Free)},
		} {
			set(poolAddresses, of.n, subnet, of.use)
		}
		for _, r := range u.Ranges {
			within := r.Range.String()
			set(rangeSize, float(r.Size), subnet, within)
			set(rangeLeft, float64(r.Resting), subnet, within, "resting")
			set(rangeLeft, float(r.Free), subnet, within, "free")
		}
		set(poolBlind, one(u.Blind != ""), subnet)
		set(conflicts, float64(u.Conflicts), subnet)
	}
	for _, h := range s.LANs {
		set(probeUp, one(h.Blind == ""), h.Link)
	}
	for _, l := range s.DHCP {
		set(leaseCount, float64(l.Lost), l.Link, LeaseLost)
		set(leaseCount, float64(l.Drifted), l.Link, LeaseDrifted)
		set(leaseCount, float64(l.Bound), l.Link, LeaseBound)
	}
	put(reconciles, prometheus.CounterValue, float64(s.Reconcile.Runs))
	put(mended, prometheus.CounterValue, float64(s.Reconcile.Mended))
	set(unmended, float64(s.Reconcile.Unmended))
	if !s.Reconcile.At.IsZero() {
		set(reconciledAt, float64(s.Reconcile.At.Unix()))
	}
}

// isLoaded says whether the state is.
func (p *Plugin) isLoaded() bool {
	select {
	case <-p.tried:
		return p.failed.Load() == nil
	default:
		return false
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func float(n *big.Int) float64 {
	f, _ := new(big.Float).SetInt(n).Float64()
	return f
}
