package pki

import (
	"crypto/x509"
	"time"
)

// Waits between attempts to renew.
const (
	firstRetry = 5 * time.Second
	lastRetry  = time.Hour
)

// Renewal is when to renew a certificate for the first time: between half and
// four fifths of its life, where in between is said by fraction, from 0 to 1.
// Life begins when the certificate was issued, not in the past to which it
// reaches back.
func Renewal(leaf *x509.Certificate, fraction float64) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	born := leaf.NotBefore.Add(min(backdate, life/2))
	life = leaf.NotAfter.Sub(born)
	return born.Add(life/2 + time.Duration(float64(life)*0.3*fraction))
}

// Next is when to ask for the certificate that follows leaf, after so many
// attempts that failed: at Renewal's time, or after a wait that doubles from
// attempt to attempt. It is never before now. fraction is drawn once for each
// leaf.
func Next(leaf *x509.Certificate, now time.Time, fraction float64, failures int) time.Time {
	at := Renewal(leaf, fraction)
	if failures > 0 {
		at = now.Add(min(lastRetry, firstRetry<<min(failures-1, 16)))
	}
	if at.Before(now) {
		return now
	}
	return at
}
