package roles_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/roles"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
	"skep/store/storetest"
)

// group makes a view of words, one for each node; the first is the leader:
//
//	NAME:PART[,PART...]
//
// with the parts voter, standby (a replica that does not vote) or out; worker,
// if the node is to be one; ready, down or gone; new (another Raft ID than the
// group knows), quiet (for 10 s), dead (for a minute), unknown (not heard of
// since the leader leads, a second ago), behind, steady, drained.
func group(t *testing.T, words string) roles.View {
	t.Helper()
	now := time.Unix(1e9, 0)
	v := roles.View{
		Contacts: map[string]replica.Contact{}, Close: map[string]time.Time{}, Began: now.Add(-time.Hour), Now: now,
		Generation: func(string) (uint64, bool) { return 0, false },
	}
	db := storetest.New(t)
	for w := range strings.FieldsSeq(words) {
		name, parts, _ := strings.Cut(w, ":")
		if v.Self == "" {
			v.Self = name
		}
		n := &object.Node{RaftID: "r-" + name, CertRole: swarm.NodeRoleManager}
		n.ID, n.Spec.Role, n.Status.State = name, swarm.NodeRoleManager, swarm.NodeStateReady
		n.Spec.Availability = swarm.NodeAvailabilityActive
		n.ManagerStatus = &swarm.ManagerStatus{Addr: name + ":2377", Reachability: swarm.ReachabilityReachable, Leader: v.Self == name}
		s := replica.Server{ID: n.RaftID, NodeID: name}
		c := &replica.Contact{Last: now}
		member, gone := false, false
		for p := range strings.SplitSeq(parts, ",") {
			switch p {
			case "voter":
				member, s.Voter = true, true
			case "standby":
				member = true
			case "out":
				n.ManagerStatus.Reachability = ""
			case "worker":
				n.Spec.Role = swarm.NodeRoleWorker
			case "down":
				n.Status.State = swarm.NodeStateDown
			case "gone":
				gone = true
			case "new":
				n.RaftID += "2"
			case "quiet":
				c.Last = now.Add(-10 * time.Second)
			case "dead":
				c.Last = now.Add(-time.Minute)
			case "unknown":
				c, v.Began = nil, now.Add(-time.Second)
			case "behind":
				c.Behind = 1000
			case "steady":
				v.Close[s.ID] = now.Add(-10 * time.Second)
			case "drained":
				n.Spec.Availability = swarm.NodeAvailabilityDrain
			default:
				t.Fatalf("unknown part %q", p)
			}
		}
		if member {
			v.Servers = append(v.Servers, s)
			if name != v.Self && c != nil {
				v.Contacts[name] = *c
			}
		}
		if !gone {
			db.Write(t, func(tx *store.Tx) { tx.Create(n) })
		}
	}
	v.Snapshot = db.Snapshot()
	return v
}

func TestPlan(t *testing.T) {
	tests := []struct{ name, group, want string }{
		{"alone", "a:voter", "rest"},
		{"a second is let in", "a:voter b:out", "add b (r-b): the node is to be a manager"},
		{"but not while it is down", "a:voter b:out,down", "rest"},
		{"a second does not vote", "a:voter b:standby,steady", "rest"},
		{"two more vote, one after the other", "a:voter b:standby,steady c:standby,steady", "promote b (r-b): the node follows closely"},
		{"the other", "a:voter b:voter c:standby,steady", "promote c (r-c): the node follows closely"},
		{"not before it follows", "a:voter b:voter c:standby", "demote b (r-b): an odd number of managers is to vote"},
		{"a fourth stands by", "a:voter b:voter c:voter d:standby,steady", "rest"},
		{"with a fifth", "a:voter b:voter c:voter d:standby,steady e:standby,steady", "promote d (r-d): the node follows closely"},
		{"silence is no death", "a:voter b:voter c:voter,quiet d:standby,steady", "rest"},
		{"a standby takes a dead one's vote", "a:voter b:voter c:voter,dead d:standby,steady", "promote d (r-d): the node follows closely"},
		{"which then loses it", "a:voter b:voter c:voter,dead d:voter", "demote c (r-c): an odd number of managers is to vote"},
		{"nobody to take it", "a:voter b:voter c:voter,dead", "rest"},
		{"one that is not steady takes it not", "a:voter b:voter c:voter,dead d:standby", "rest"},
		{"a demotion", "a:voter b:voter,worker c:voter", "demote b (r-b): the node was demoted"},
		{"its second step", "a:voter b:standby,worker c:voter", "remove b (r-b): the node was demoted"},
		{"then there are two", "a:voter b:out,worker c:voter", "demote c (r-c): an odd number of managers is to vote"},
		{
			"a demotion that costs the quorum", "a:voter b:voter,worker c:voter,dead",
			"blocked b (r-b): the node was demoted, but without it too few managers could be reached: start one that is down, or promote another",
		},
		{"the dead one itself", "a:voter b:voter c:voter,dead,worker", "demote c (r-c): the node was demoted"},
		{
			"a new leader does not guess", "a:voter b:voter,worker c:voter,unknown",
			"blocked b (r-b): the node was demoted, but without it too few managers could be reached: start one that is down, or promote another",
		},
		{"the leader hands over first", "a:voter,worker b:voter,behind c:voter", "transfer c (r-c): the node was demoted"},
		{"for which a standby gets a vote", "a:voter,worker b:standby,steady", "promote b (r-b): the node follows closely"},
		{"but not to nobody", "a:voter,worker b:standby", "blocked a (r-a): the node was demoted, but no other manager can lead"},
		{"nor to one that goes", "a:voter,worker b:voter,worker c:voter", "transfer c (r-c): the node was demoted"},
		{"a blocked one holds up nobody", "a:voter b:voter,worker c:voter,dead d:out", "add d (r-d): the node is to be a manager"},
		{"a removed node", "a:voter b:standby,gone", "remove b (r-b): the node was removed"},
		{"a node that begins anew", "a:voter b:voter,new c:voter", "demote b (r-b): the node has begun anew"},
		{"goes, to come again", "a:voter b:standby,new c:voter", "remove b (r-b): the node has begun anew"},
		{"a drained leader", "a:voter,drained b:voter,drained c:voter", "transfer c (r-c): the leader's node is drained"},
		{"where all are", "a:voter,drained b:voter,drained c:voter,drained", "rest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := roles.Plan(group(t, tt.group)).String(); got != tt.want {
				t.Errorf("step for %s:\n got %s\nwant %s", tt.group, got, tt.want)
			}
		})
	}
}

func TestStatuses(t *testing.T) {
	show := func(v roles.View) string {
		var out []string
		for _, n := range roles.Statuses(v) {
			text := n.ID + " none"
			if m := n.ManagerStatus; m != nil {
				text = fmt.Sprintf("%s %t %s %s", n.ID, m.Leader, m.Reachability, m.Addr)
			}
			out = append(out, fmt.Sprintf("%s %s %d", text, n.RaftID, n.MinGeneration))
		}
		return strings.Join(out, "; ")
	}
	tests := []struct{ name, group, want string }{
		{"alone", "a:voter", ""},
		{"three", "a:voter b:voter c:standby", ""},
		{"one is silent", "a:voter b:voter,quiet c:voter", "b false unreachable b:2377 r-b 0"},
		{"a new leader waits and sees", "a:voter b:voter,unknown c:voter,unknown", ""},
		{"one that is not in yet", "a:voter b:out", ""},
		{"one that goes", "a:voter b:voter,worker c:voter", ""},
		{"and is out", "a:voter b:out,worker c:voter", "b none r-b 0"},
		{"and begins anew", "a:voter b:standby,new c:voter", "b false  b:2377 r-b2 0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := show(group(t, tt.group)); got != tt.want {
				t.Errorf("written for %s:\n got %q\nwant %q", tt.group, got, tt.want)
			}
		})
	}

	// The demotion is over when the node shows its new certificate.
	v := group(t, "a:voter b:out,worker c:voter")
	db := storetest.New(t)
	for n := range v.Snapshot.Nodes.All() {
		n = n.Clone().(*object.Node)
		if n.ID == "b" {
			n.ManagerStatus, n.CertRole, n.Generation = nil, swarm.NodeRoleWorker, 70
		}
		db.Write(t, func(tx *store.Tx) { tx.Create(n) })
	}
	v.Snapshot = db.Snapshot()
	for shown, want := range map[uint64]string{0: "", 69: "", 70: "b none  70"} {
		v.Generation = func(string) (uint64, bool) { return shown, true }
		if got := show(v); got != want {
			t.Errorf("it shows generation %d: got %q, want %q", shown, got, want)
		}
	}
}

// TestPlan_ComesToRestAndKeepsTheQuorum takes groups of chance from step to step.
func TestPlan_ComesToRestAndKeepsTheQuorum(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		pick := func(s ...string) string { return s[r.IntN(len(s))] }
		words := "n0:voter" + pick("", ",drained", ",worker")
		for i := range r.IntN(7) {
			words += fmt.Sprintf(" n%d:%s,%s,%s", i+1, pick("voter", "voter", "standby", "out"),
				pick("ready", "ready", "worker", "gone", "new", "drained"), pick("steady", "dead", "quiet", "behind", "ready"))
		}
		v := group(t, strings.ReplaceAll(strings.ReplaceAll(words, ",ready", ""), "voter,steady", "voter"))
		was := words
		for i := 0; ; i++ {
			s := roles.Plan(v)
			if s.Do == roles.Rest || s.Do == roles.Blocked {
				break
			}
			if i > 50 {
				t.Fatalf("seed %d: no rest: %s; now %s", seed, was, s)
			}
			was += "; " + s.String()
			before := quorum(v)
			carryOut(&v, s)
			if before && !quorum(v) {
				t.Fatalf("seed %d: the quorum is lost: %s", seed, was)
			}
		}
		if diff := cmp.Diff(roles.Plan(v), roles.Plan(v)); diff != "" {
			t.Errorf("seed %d: two plans of the same differ:\n%s", seed, diff)
		}
		voters := 0
		for _, s := range v.Servers {
			if s.Voter {
				voters++
			}
		}
		if end := roles.Plan(v); end.Do == roles.Rest && quorum(v) && voters%2 == 0 {
			t.Errorf("seed %d: %d voters at the end: %s", seed, voters, was)
		}
	}
}

// quorum reports whether the group can go on without who is silent.
func quorum(v roles.View) bool {
	voters, up := 0, 0
	for _, s := range v.Servers {
		if !s.Voter {
			continue
		}
		voters++
		if c, ok := v.Contacts[s.NodeID]; s.NodeID == v.Self || ok && v.Now.Sub(c.Last) < 5*time.Second {
			up++
		}
	}
	return up > voters/2
}

func carryOut(v *roles.View, s roles.Step) {
	var out []replica.Server
	for _, o := range v.Servers {
		if o.ID == s.ID {
			switch s.Do {
			case roles.Remove:
				continue
			case roles.Promote:
				o.Voter = true
			case roles.Demote:
				o.Voter = false
			default:
			}
		}
		out = append(out, o)
	}
	switch s.Do {
	case roles.Add:
		out = append(out, replica.Server{ID: s.ID, NodeID: s.NodeID})
		v.Contacts[s.NodeID] = replica.Contact{Last: v.Now}
		v.Close[s.ID] = v.Now.Add(-time.Minute)
	case roles.Transfer:
		v.Self = s.NodeID
		for _, o := range v.Servers {
			if _, ok := v.Contacts[o.NodeID]; !ok {
				v.Contacts[o.NodeID] = replica.Contact{Last: v.Now}
			}
		}
	default:
	}
	v.Servers = out
}
