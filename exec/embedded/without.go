//go:build !embedded

package embedded

func files() (program, checksum string) { return "", "" }
