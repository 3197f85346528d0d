package doors

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	_ "github.com/opencontainers/cgroups/devices" // or no container starts: device rules
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters namespaces before Go starts

	"skep/exec/shim"
)

// Door is the first statement of main. If the process was started as a
// container's init or to create a container, it does that, and taken is true:
// main then exits with code at once.
func Door() (code int, taken bool) {
	if len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init() // never returns
	}
	if !shim.Creating() {
		return 0, false
	}
	return creator(), true
}

func creator() int {
	data, err := shim.ReadJob()
	var j Job
	if err == nil {
		err = json.Unmarshal(data, &j)
	}
	c := shim.NewCreator(j.Process != nil && j.Process.Terminal)
	if err == nil && j.Process == nil {
		err = errors.New("a job without a process")
	}
	if err == nil {
		err = j.do(c)
	}
	if err != nil {
		c.Failed(err)
		return 1
	}
	return 0
}

func (j *Job) do(c *shim.Creator) (err error) {
	var box *libcontainer.Container
	if j.Root != nil {
		box, err = j.create()
	} else {
		box, err = j.join()
	}
	if err != nil {
		return err
	}
	p, err := process(j.Process)
	if err != nil {
		return err
	}
	p.Init = j.Root != nil
	if c.Console != nil {
		p.ConsoleSocket = c.Console
	} else {
		p.Stdin, p.Stdout, p.Stderr = c.Stdin, c.Stdout, c.Stderr
	}
	if err = box.Run(p); err != nil {
		if p.Init {
			err = errors.Join(err, box.Destroy())
		}
		return err
	}
	pid, err := p.Pid()
	if err != nil {
		return fmt.Errorf("find process: %w", err)
	}
	return c.Created(j.RunDir, pid)
}
