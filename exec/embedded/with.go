//go:build embedded

package embedded

import _ "embed" // for the two files

var (
	//go:embed skep.gz
	packed string
	//go:embed skep.sha256
	sum string
)

func files() (program, checksum string) { return packed, sum }
