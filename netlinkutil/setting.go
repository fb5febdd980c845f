package netlinkutil

import (
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls are the folders of a netns's sysctls: of that of the thread that looks
// there. A managed plugin has its /proc/sys read-only, and another mount of the
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

// settingGroup is a folder of the folders of links, with the names in each.
type settingGroup struct {
	folder string // "ipv4/conf/"
	names  []string
}

// settingGroups lists the sysctls of links that this kernel has.
func settingGroups() (groups []settingGroup) {
	for _, folder := range []string{"ipv4/conf/", "ipv4/neigh/", "ipv6/conf/", "ipv6/neigh/"} {
		g := settingGroup{folder: folder}
		es, _ := os.ReadDir(sysctls[0] + folder + "lo") // no IPv6, no settings of it
		for _, e := range es {
			if name := folder + e.Name(); settingName.MatchString(name) && !underived[name] {
				g.names = append(g.names, e.Name())
			}
		}
		groups = append(groups, g)
	}
	return groups
}

// of is the file of a setting of a link.
func (r *room) of(link, name string) string {
	i := strings.LastIndexByte(name, '/')
	return name[:i+1] + link + name[i:]
}

// setting reads one, "" where it is not to be had.
func (r *room) setting(file string) string { return settingAt(unix.AT_FDCWD, sysctls[0]+file) }

// settingAt reads one in an open folder.
func settingAt(folder int, file string) string {
	fd, err := unix.Openat(folder, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var buf [128]byte // a stable_secret has 39
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(buf[:n]))
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

// settingsOf are those of a link that are not as a new one's. The folders are
// opened once: the way to them leads past those of all other netns.
func (r *room) settingsOf(link string) map[string]string {
	differ := map[string]string{}
	for _, g := range r.groups {
		fresh := "default"
		if strings.HasSuffix(g.folder, "/neigh/") {
			fresh = "lo" // which began as all do: the default is in the host alone
		}
		is, err := unix.Open(sysctls[0]+g.folder+link, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		was, err := unix.Open(sysctls[0]+g.folder+fresh, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			for _, name := range g.names {
				if v := settingAt(is, name); v != "" && v != settingAt(was, name) {
					differ[g.folder+name] = v
				}
			}
			unix.Close(was)
		}
		unix.Close(is)
	}
	if len(differ) == 0 {
		return nil // as it comes out of a record
	}
	return differ
}
