package logs

import (
	"bytes"
	"time"

	"skep/store/object"
)

// maxRecord bounds a record: a shim writes at most 16 KiB of text in one.
const maxRecord = 32 << 10

// Parse reads one record, without its newline:
//
//	2026-11-20T22:43:12.123456789Z stdout F text
//
// F is a whole line, P one that goes on in the next record of its stream.
func Parse(rec []byte) (line object.LogLine, ok bool) {
	stamp, rest, ok1 := bytes.Cut(rec, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	flag, text, ok3 := bytes.Cut(rest, []byte(" "))
	if !ok1 || !ok2 || !ok3 || len(flag) != 1 || flag[0] != 'F' && flag[0] != 'P' {
		return line, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return line, false
	}
	switch string(stream) {
	case "stdout":
	case "stderr":
		line.Stderr = true
	default:
		return line, false
	}
	line.Time = at
	line.Text = make([]byte, 0, len(text)+1)
	line.Text = append(line.Text, text...)
	if flag[0] == 'F' {
		line.Text = append(line.Text, '\n')
	}
	return line, true
}

func whole(l object.LogLine) bool { return len(l.Text) > 0 && l.Text[len(l.Text)-1] == '\n' }
