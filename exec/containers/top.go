package containers

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/runc/libcontainer"

	"skep/store/object"
)

// Top lists the container's processes. There is no ps on this node, so the
// arguments are understood as far as they choose columns: "-ef" (also when
// empty), "aux", and "-o NAME,NAME".
func (e *Engine) Top(_ context.Context, ref, psArgs string) (container.TopResponse, error) {
	c, err := e.find(ref)
	if err != nil {
		return container.TopResponse{}, err
	}
	s := c.status()
	switch {
	case s.Restarting:
		return container.TopResponse{}, object.Errorf(errdefs.ErrConflict, "container %s is restarting, wait until the container is running", c.id)
	case !s.Running:
		return container.TopResponse{}, object.Errorf(errdefs.ErrConflict, "container %s is not running", ref)
	}
	columns, err := psColumns(psArgs)
	if err != nil {
		return container.TopResponse{}, err
	}
	box, err := libcontainer.Load(e.stateRoot(), c.id)
	if err != nil {
		return container.TopResponse{}, fmt.Errorf("list processes: %w", err)
	}
	pids, err := box.Processes()
	if err != nil {
		return container.TopResponse{}, fmt.Errorf("list processes: %w", err)
	}
	var out container.TopResponse
	for _, col := range columns {
		out.Titles = append(out.Titles, title(col))
	}
	uptime, memory := bootTime(), machineMemory()
	for _, pid := range pids {
		p, ok := readProc(pid)
		if !ok {
			continue // it ended
		}
		row := make([]string, 0, len(columns))
		for _, col := range columns {
			row = append(row, p.column(col, uptime, memory))
		}
		out.Processes = append(out.Processes, row)
	}
	e.tell(c, events.ActionTop)
	return out, nil
}

func psColumns(args string) ([]string, error) {
	f := strings.Fields(args)
	switch {
	case len(f) == 0, len(f) == 1 && strings.ContainsRune(f[0], 'f') && strings.HasPrefix(f[0], "-"):
		return []string{"uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"}, nil
	case len(f) == 1 && strings.Contains(f[0], "u"):
		return []string{"user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command"}, nil
	}
	var cols []string
	for i, a := range f {
		switch {
		case a == "-o" || a == "-eo" || a == "o" || a == "-e":
		case i > 0 || strings.HasPrefix(a, "-o"):
			for col := range strings.SplitSeq(strings.TrimPrefix(a, "-o"), ",") {
				if title(col) == "" {
					return nil, invalid("ps: unknown column %q", col)
				}
				cols = append(cols, col)
			}
		default:
			return nil, invalid("ps: unknown option %q", a)
		}
	}
	return cols, nil
}

func title(col string) string {
	switch col {
	case "uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd", "user", "vsz", "rss", "stat", "start", "command", "comm", "etime":
		return strings.ToUpper(col)
	case "%cpu", "pcpu":
		return "%CPU"
	case "%mem", "pmem":
		return "%MEM"
	case "args":
		return "COMMAND"
	case "etimes":
		return "ELAPSED"
	}
	return ""
}

// proc is a process as /proc tells of it.
type proc struct {
	pid, uid   int
	comm, args string
	stat       []string // the fields from the state on
}

func readProc(pid int) (p proc, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, false
	}
	// The name may hold anything, parentheses too.
	open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
	if open < 0 || end < open {
		return p, false
	}
	p = proc{pid: pid, comm: string(b[open+1 : end]), stat: strings.Fields(string(b[end+1:]))}
	if len(p.stat) < 22 {
		return p, false
	}
	if st, gone := os.Stat(dir); gone == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			p.uid = int(sys.Uid)
		}
	}
	cmd, err := os.ReadFile(dir + "/cmdline")
	p.args = strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
	if err != nil || p.args == "" {
		p.args = "[" + p.comm + "]"
	}
	return p, true
}

// field is a number of /proc/PID/stat, counted from the state.
func (p *proc) field(i int) uint64 {
	n, err := strconv.ParseUint(p.stat[i], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (p *proc) column(col string, boot time.Time, memory uint64) string {
	const state, ppid, tty, utime, stime, start, vsize, rss = 0, 1, 4, 11, 12, 19, 20, 21
	cpu := time.Duration(p.field(utime)+p.field(stime)) * time.Second / clockTicks
	began := boot.Add(time.Duration(p.field(start)) * time.Second / clockTicks)
	age := max(time.Since(began), time.Millisecond)
	resident := p.field(rss) * uint64(os.Getpagesize())
	switch col {
	case "pid":
		return strconv.Itoa(p.pid)
	case "ppid":
		return p.stat[ppid]
	case "uid", "user":
		return userName(p.uid)
	case "c":
		return strconv.Itoa(int(100 * cpu / age))
	case "%cpu", "pcpu":
		return fmt.Sprintf("%.1f", 100*cpu.Seconds()/age.Seconds())
	case "%mem", "pmem":
		return fmt.Sprintf("%.1f", 100*float64(resident)/float64(max(memory, 1)))
	case "vsz":
		return strconv.FormatUint(p.field(vsize)>>10, 10)
	case "rss":
		return strconv.FormatUint(resident>>10, 10)
	case "stat":
		return p.stat[state]
	case "stime", "start":
		return began.Format("15:04")
	case "etime":
		return clock(age)
	case "etimes":
		return strconv.Itoa(int(age.Seconds()))
	case "time":
		return clock(cpu)
	case "tty":
		return ttyName(p.field(tty))
	case "comm":
		return p.comm
	default:
		return p.args
	}
}

func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

func ttyName(dev uint64) string {
	if major := dev >> 8 & 0xfff; major >= 136 && major <= 143 {
		return "pts/" + strconv.FormatUint(dev&0xff|dev>>12&0xfff00, 10)
	}
	return "?"
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

func bootTime() time.Time {
	var ts syscall.Sysinfo_t
	if err := syscall.Sysinfo(&ts); err != nil {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(ts.Uptime) * time.Second)
}
