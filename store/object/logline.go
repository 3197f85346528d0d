package object

import (
	"fmt"
	"io"
	"time"
)

// LogQuery says which lines of a log are wanted.
type LogQuery struct {
	Stdout, Stderr bool
	Follow         bool
	// Since and Until bound the lines' times; zero means no bound.
	Since, Until time.Time
	// Tail is the number of last lines wanted; negative means all.
	Tail int
}

// LogLine is one line (or a part of a long one) that a container wrote.
type LogLine struct {
	Time   time.Time
	Stderr bool
	// Text holds the newline, unless the line goes on in the next LogLine.
	Text []byte
}

// Warning is the line that stands for what is missing of a log.
func Warning(at time.Time, missing error) LogLine {
	return LogLine{Time: at, Stderr: true, Text: fmt.Appendf(nil, "warning: incomplete log stream: %v\n", missing)}
}

// Streams are the ends of a client that is attached to a process. Nil means
// not attached. Whoever is given Streams does not close them.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// DetachKeys end the attachment when they are typed; empty means the
	// client's keys are passed on untouched.
	DetachKeys []byte
	// Attached, if set, is called once, before anything is written to the
	// streams and when all that the process writes from then on will be: a
	// client that starts the container afterwards misses nothing.
	Attached func()
}
