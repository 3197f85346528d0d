// Package logstream reads the logs of tasks from whichever node they run on.
//
// A manager asks the task's node over a connection that the node serves to
// managers:
//
//	manager ── GET /tasks/{id}/logs?query= ──► node
//	        ◄── line, line, sign of life, line, … end ──
//	        ── one byte for each 16 KiB of lines ──►
//
// It promises that a node that is down, hangs or goes away ends nothing but its
// own part, within seconds and with an error that names the node; that whoever
// follows gets the rest when the node is back; and that nothing is left running
// once the reader stops. It reads a log, and does not merge several.
package logstream
