package membership

import "skep/appliance/wire/control"

// Table is what the control port serves.
func (m *Membership) Table() []control.Row { return m.stay.Load().half.Load().port.Table() }

// Replicas are the names of the swarm's replicas.
func (m *Membership) Replicas() (ids []string) {
	for _, s := range m.stay.Load().half.Load().member.Members() {
		ids = append(ids, s.ID)
	}
	return ids
}

// Identity is the node's own.
func (m *Membership) Identity() *control.Identity { return m.stay.Load().current() }

// Voters counts the managers that decide, as far as this one knows.
func (m *Membership) Voters() int {
	h, err := m.manager()
	if err != nil {
		return 0
	}
	n := 0
	for _, s := range h.member.Members() {
		if s.Voter {
			n++
		}
	}
	return n
}
