// Command guest is what the tests run in containers: a static program whose
// arguments are a script of small deeds, done in order.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args[1:]
	for len(args) > 0 {
		n := do(args)
		args = args[n:]
	}
}

func num(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func do(a []string) int {
	arg := func(i int) string {
		if i < len(a) {
			return a[i]
		}
		return ""
	}
	switch a[0] {
	case "out":
		fmt.Println(arg(1))
		return 2
	case "raw":
		fmt.Print(strings.ReplaceAll(arg(1), `\n`, "\n"))
		return 2
	case "err":
		fmt.Fprintln(os.Stderr, arg(1))
		return 2
	case "exit":
		os.Exit(num(arg(1)))
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
		return 1
	case "echo": // a line at a time
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			fmt.Println("got " + in.Text())
		}
		return 1
	case "ms":
		time.Sleep(time.Duration(num(arg(1))) * time.Millisecond)
		return 2
	case "term": // wait for SIGTERM and exit with a code
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("waiting")
		<-c
		os.Exit(num(arg(1)))
	case "deaf": // wait, whatever is asked
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("deaf")
		time.Sleep(time.Hour)
	case "count":
		for i := range num(arg(1)) {
			fmt.Println("line", i, strings.Repeat("x", 60))
			fmt.Fprintln(os.Stderr, "err", i)
		}
		return 2
	case "tick": // N lines, a pause after each
		for i := range num(arg(1)) {
			fmt.Println("tick", i)
			time.Sleep(time.Duration(num(arg(2))) * time.Millisecond)
		}
		return 3
	case "eat": // MB
		b := make([]byte, num(arg(1))<<20)
		for i := range b {
			b[i] = byte(i)
		}
		fmt.Println("ate", len(b))
		return 2
	case "fork": // as many as it gets, up to N
		n := 0
		for range num(arg(1)) {
			if exec.Command("/guest", "ms", "300").Start() != nil {
				break
			}
			n++
		}
		fmt.Println("forked", n)
		return 2
	case "orphan": // a child's child outlives the child
		exec.Command("/guest", "spawn").Run()
		time.Sleep(400 * time.Millisecond)
		zombies := 0
		list, _ := os.ReadDir("/proc")
		for _, d := range list {
			b, err := os.ReadFile("/proc/" + d.Name() + "/stat")
			if err == nil && strings.Contains(string(b), ") Z ") {
				zombies++
			}
		}
		fmt.Println("zombies", zombies, "pid", os.Getpid())
		return 1
	case "spawn":
		exec.Command("/guest", "ms", "50").Start()
		return 1
	case "read":
		b, err := os.ReadFile(arg(1))
		if err != nil {
			fmt.Println("error:", err)
			return 2
		}
		os.Stdout.Write(b)
		return 2
	case "write":
		if err := os.WriteFile(arg(1), []byte(arg(2)), 0o644); err != nil {
			fmt.Println("error:", err)
		}
		return 3
	case "ls":
		list, err := os.ReadDir(arg(1))
		if err != nil {
			fmt.Println("error:", err)
		}
		for _, d := range list {
			i, _ := d.Info()
			st := i.Sys().(*syscall.Stat_t)
			fmt.Println(i.Mode(), st.Uid, st.Gid, i.Name())
		}
		return 2
	case "id":
		g, _ := os.Getgroups()
		fmt.Println(os.Getuid(), os.Getgid(), g)
		return 1
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
		return 1
	case "host":
		h, _ := os.Hostname()
		fmt.Println(h)
		return 1
	case "cwd":
		d, _ := os.Getwd()
		fmt.Println(d)
		return 1
	case "socket":
		fd, err := syscall.Socket(num(arg(1)), syscall.SOCK_STREAM, 0)
		fmt.Println("socket", arg(1), err == nil, err)
		syscall.Close(fd)
		return 2
	case "unshare":
		fmt.Println("unshare", syscall.Unshare(syscall.CLONE_NEWNS))
		return 1
	case "mknod":
		fmt.Println("mknod", syscall.Mknod("/sda", syscall.S_IFBLK|0o600, 8<<8))
		f, err := os.Open("/sda")
		f.Close()
		fmt.Println("open", err)
		return 1
	case "size":
		var ws struct{ Row, Col, X, Y uint16 }
		_, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(ptr(&ws)))
		fmt.Println("size", ws.Row, ws.Col, e == 0)
		return 1
	case "spin":
		end := time.Now().Add(time.Duration(num(arg(1))) * time.Millisecond)
		for time.Now().Before(end) {
		}
		return 2
	case "rlimit":
		var r syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r)
		fmt.Println("nofile", r.Cur, r.Max)
		return 1
	case "exists": // health: 0 if the file is there
		if _, err := os.Stat(arg(1)); err != nil {
			fmt.Println("no", arg(1))
			os.Exit(1)
		}
		fmt.Println("yes")
		return 2
	default:
		fmt.Fprintln(os.Stderr, "guest: what is", a[0])
		os.Exit(99)
	}
	return len(a)
}
