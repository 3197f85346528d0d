package logs

import (
	"bytes"
	"os"

	"skep/store/object"
)

// back finds where the last n lines of a file begin that are wanted, and how
// many there are, up to n. It reads from the end.
func back(f *os.File, n int, wants func(object.LogLine) bool) (at int64, found int, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	const block = 64 << 10
	var tail []byte // what follows pos and is not looked at yet
	pos := st.Size()
	end := pos // where the record after tail begins
	open := map[bool]bool{false: true, true: true}
	for {
		// A record is looked at when the newline before it is known.
		for {
			body := bytes.TrimSuffix(tail, []byte("\n"))
			nl := bytes.LastIndexByte(body, '\n')
			if nl < 0 && pos > 0 || len(tail) == 0 {
				break
			}
			start := end - int64(len(tail)-nl-1)
			if line, ok := Parse(body[nl+1:]); ok && wants(line) {
				// The parts of a line come before its end, so a line is
				// counted there, or at a part with nothing after it.
				if whole(line) || open[line.Stderr] {
					if found == n {
						return end, found, nil
					}
					found++
				}
				open[line.Stderr] = false
			}
			end, tail = start, tail[:nl+1]
		}
		if pos == 0 {
			return 0, found, nil
		}
		size := min(pos, block)
		head := make([]byte, size, int(size)+len(tail))
		if _, err := f.ReadAt(head, pos-size); err != nil {
			return 0, 0, err
		}
		pos -= size
		tail = append(head, tail...)
		if len(tail) > 2*block {
			tail = tail[:0] // no newline for this long: not records
			end = pos
		}
	}
}
