package admin

// OpenAuditSegments opens an audit whose segments are small.
func OpenAuditSegments(dir string, seal Sealer, segment int64) (*Audit, error) {
	a, err := OpenAudit(dir, seal)
	if err == nil {
		a.segment = segment
	}
	return a, err
}
