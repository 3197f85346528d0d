package engine_test

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// authority is a root and its key, in PEM.
func authority(tb testing.TB, born time.Time) (*pki.Root, string) {
	tb.Helper()
	r, err := pki.NewRoot(born)
	if err != nil {
		tb.Fatal(err)
	}
	key, err := r.KeyPEM()
	if err != nil {
		tb.Fatal(err)
	}
	return r, string(key)
}

// updateCA posts the swarm's spec with another authority.
func updateCA(tb testing.TB, m *manager, change func(*swarm.CAConfig)) (status int, text string) {
	tb.Helper()
	c := m.store.Snapshot().Cluster()
	spec := c.Spec
	spec.CAConfig.SigningCACert, spec.CAConfig.SigningCAKey = "", "" // clients do not see them
	change(&spec.CAConfig)
	body, err := json.Marshal(spec)
	if err != nil {
		tb.Fatal(err)
	}
	status, _, answer := m.call(tb, "POST", "/swarm/update?version="+strconv.FormatUint(c.Version.Index, 10), string(body))
	if status == 200 {
		return status, answer
	}
	return status, message(tb, answer)
}

func TestSwarm_RefusesRootsThatItCannotHave(t *testing.T) {
	m := initialised(t)
	root, key := authority(t, time.Now())
	other, otherKey := authority(t, time.Now())
	old, oldKey := authority(t, time.Now().Add(-pki.RootLife+300*24*time.Hour))
	tests := []struct {
		name   string
		change func(*swarm.CAConfig)
		text   string
	}{
		{"short life", func(c *swarm.CAConfig) { c.NodeCertExpiry = time.Minute }, "minimum certificate expiry time is: 1h0m0s"},
		{"only a key", func(c *swarm.CAConfig) { c.SigningCAKey = key }, "if a signing CA key is provided, the signing CA cert must also be provided"},
		{"two", func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(root.PEM())+string(other.PEM()), key }, "the desired CA certificate cannot contain multiple certificates"},
		{"ends soon", func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(old.PEM()), oldKey }, "CA certificate expires too soon"},
		{"no pair", func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(root.PEM()), otherKey }, "parse root: certificate and key are not a pair"},
		{"nobody has the key", func(c *swarm.CAConfig) { c.SigningCACert = string(root.PEM()) }, "there must be at least one valid, reachable external CA corresponding to the desired CA certificate"},
		{"unknown protocol", func(c *swarm.CAConfig) { c.ExternalCAs = []*swarm.ExternalCA{{Protocol: "acme", URL: "https://x"}} }, "unrecognized external CA protocol: only cfssl is known"},
		{"null", func(c *swarm.CAConfig) { c.ExternalCAs = []*swarm.ExternalCA{nil} }, "unrecognized external CA protocol: only cfssl is known"},
		{"in the clear", func(c *swarm.CAConfig) { c.ExternalCAs = []*swarm.ExternalCA{{Protocol: "cfssl", URL: "http://x"}} }, `external CA URL "http://x" is not that of an HTTPS server`},
	}
	for _, tt := range tests {
		if status, text := updateCA(t, m, tt.change); status != 400 || text != tt.text {
			t.Errorf("%s: %d %q, want 400 %q", tt.name, status, text, tt.text)
		}
	}
	m.store.Write(t, func(tx *store.Tx) {
		c := tx.Base().Cluster().Clone().(*object.Cluster)
		c.RootCA.Key = nil
		tx.Update(c)
	})
	status, text := updateCA(t, m, func(c *swarm.CAConfig) { c.SigningCACert = string(root.PEM()) })
	if status != 400 || text != "rotating from one external CA to a different external CA is not supported" {
		t.Errorf("external to external: %d %q", status, text)
	}
	status, text = updateCA(t, m, func(c *swarm.CAConfig) { c.ForceRotate++ })
	if status != 400 || text != "there must be at least one valid, reachable external CA corresponding to the current CA certificate" {
		t.Errorf("rotation without the external authority: %d %q", status, text)
	}
}

func TestSwarm_AsksForAnotherRootAndHidesItsKey(t *testing.T) {
	m := initialised(t)
	root, key := authority(t, time.Now())
	shown := func() (string, swarm.Swarm) {
		_, _, body := m.call(t, "GET", "/v1.51/swarm", "")
		var s swarm.Swarm
		if err := json.Unmarshal([]byte(body), &s); err != nil {
			t.Fatal(err)
		}
		return body, s
	}
	_, before := shown()
	if before.RootRotationInProgress || !strings.Contains(before.TLSInfo.TrustRoot, "BEGIN CERTIFICATE") {
		t.Fatalf("got %+v", before.ClusterInfo)
	}
	if status, text := updateCA(t, m, func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(root.PEM()), key }); status != 200 {
		t.Fatal(text)
	}
	body, s := shown()
	if !s.RootRotationInProgress || strings.Contains(body, "PRIVATE KEY") || s.Spec.CAConfig.SigningCACert != "" {
		t.Errorf("got %s", body)
	}
	// A change of something else by one who does not see the root leaves it.
	if status, text := updateCA(t, m, func(c *swarm.CAConfig) { c.NodeCertExpiry = 2 * time.Hour }); status != 200 {
		t.Fatal(text)
	}
	c := m.store.Snapshot().Cluster()
	if c.Spec.CAConfig.SigningCAKey != key || c.Spec.CAConfig.NodeCertExpiry != 2*time.Hour || !c.RootDue() {
		t.Errorf("the root that was given is forgotten: %+v", c.Spec.CAConfig.NodeCertExpiry)
	}
}
