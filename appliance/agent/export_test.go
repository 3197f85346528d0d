package agent

// What the table of transitions is tested by.
var (
	Step     = step
	ErrIdle  = errIdle
	ErrAgain = errAgain
)
