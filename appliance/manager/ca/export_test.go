package ca

// ParseAnswer is for the fuzzer: it reads what an authority outside says.
func ParseAnswer(status int, body []byte) ([]byte, error) { return parseAnswer(status, body) }
