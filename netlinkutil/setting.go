package netlinkutil

import (
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls are the folders of a netns's sysctls: that of the thread that opens
// them. A managed plugin has its /proc/sys read-only, and another mount of the
// host's at /sysctl/net.
var sysctls = [...]string{"/proc/sys/net/", "/sysctl/net/"}

// underived leaves out the settings that are another one's in other units, are
// not to be set, or follow the link.
var underived = map[string]bool{
	"ipv4/conf/mc_forwarding": true, "ipv6/conf/mc_forwarding": true, "ipv6/conf/mtu": true,
	"ipv4/neigh/base_reachable_time": true, "ipv6/neigh/base_reachable_time": true,
	"ipv4/neigh/retrans_time": true, "ipv6/neigh/retrans_time": true,
	"ipv4/neigh/unres_qlen": true, "ipv6/neigh/unres_qlen": true,
}

// settingName has no way out of the folder of a link.
var settingName = regexp.MustCompile(`^ipv[46]/(conf|neigh)/[a-z0-9_]+$`)

// settingNames lists the sysctls of links that this kernel has.
func settingNames() (names []string) {
	for _, in := range []string{"ipv4/conf/", "ipv4/neigh/", "ipv6/conf/", "ipv6/neigh/"} {
		es, _ := os.ReadDir(sysctls[0] + in + "lo") // no IPv6, no settings of it
		for _, e := range es {
			if name := in + e.Name(); settingName.MatchString(name) && !underived[name] {
				names = append(names, name)
			}
		}
	}
	return names
}

// of is the file of a setting of a link.
func (r *room) of(link, name string) string {
	i := strings.LastIndexByte(name, '/')
	return name[:i+1] + link + name[i:]
}

// fresh is the file of a setting that a new link begins with. The neighbours'
// have no default but the host's, with which lo began.
func (r *room) fresh(name string) string {
	if strings.Contains(name, "/neigh/") {
		return r.of("lo", name)
	}
	return r.of("default", name)
}

// setting reads one, "" where it is not to be had.
func (r *room) setting(file string) string {
	var buf [128]byte // a stable_secret has 39
	for _, in := range sysctls {
		fd, err := unix.Open(in+file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		n, err := unix.Read(fd, buf[:])
		unix.Close(fd)
		if err == nil {
			return strings.TrimSpace(string(buf[:n]))
		}
	}
	return ""
}

// set writes one unless it is so already.
func (r *room) set(file, value string) (err error) {
	if r.setting(file) == value {
		return nil
	}
	for _, in := range sysctls {
		if err = os.WriteFile(in+file, []byte(value), 0); err == nil {
			return nil
		}
	}
	return err
}

// settings are those of a link that are not as a new one's.
func (r *room) settingsOf(link string) map[string]string {
	var differ map[string]string
	for _, name := range r.names {
		v := r.setting(r.of(link, name))
		if v == "" || v == r.setting(r.fresh(name)) {
			continue
		}
		if differ == nil {
			differ = map[string]string{}
		}
		differ[name] = v
	}
	return differ
}
