package join_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"skep/pki/join"
)

const example = "SWMTKN-1-37sc1a0x6hjbv6ml7jf0d3vbmmcfe6iduj8x9pw6f1bc7wrjhu-dge9p2gu2e8u0ccgnbbmg1lvo"

func TestToken_HasOneSpelling(t *testing.T) {
	tok := join.New([]byte("root"))
	text := tok.Text()
	if len(text) != len(example) {
		t.Errorf("got %d characters, want %d", len(text), len(example))
	}
	again, err := join.Parse(text)
	if err != nil || !again.Equal(tok) || again.Text() != text || !again.Trusts([]byte("root")) || again.Trusts([]byte("other")) {
		t.Errorf("got %v, %v", again.Text(), err)
	}
	if other := join.New([]byte("root")); other.Equal(tok) || other.Text() == text {
		t.Error("two tokens are the same")
	}
	if one, err := join.Parse(example); err != nil || one.Text() != example {
		t.Errorf("got %v", err)
	}
}

func TestParse_RefusesEverythingElse(t *testing.T) {
	for _, in := range []string{
		"", "SWMTKN-1-", strings.ToUpper(example), example + "x", example[1:], " " + example, example + "\n",
		strings.Replace(example, "SWMTKN-1", "SWMTKN-2", 1), strings.Replace(example, "-dge", "+dge", 1),
		"SWMTKN-1-" + strings.Repeat("z", 50) + "-" + strings.Repeat("0", 25), // more than 256 bits
		"SWMTKN-1-" + strings.Repeat("0", 50) + "-" + strings.Repeat("z", 25), // more than 128 bits
		"SWMTKN-1-" + strings.Repeat("0", 49) + "--" + strings.Repeat("0", 25),
		"SWMTKN-1--" + strings.Repeat("0", 49) + "-" + strings.Repeat("0", 25),
		"SWMTKN-1-" + strings.Repeat("_", 50) + "-" + strings.Repeat("0", 25),
	} {
		if _, err := join.Parse(in); err == nil || err.Error() != "invalid join token" {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

func TestToken_HidesItself(t *testing.T) {
	tok := join.New(nil)
	for _, shown := range []string{
		fmt.Sprint(tok), fmt.Sprintf("%+v %#v %s %x", tok, tok, tok, tok), slog.AnyValue(tok).Resolve().String(),
	} {
		if !strings.Contains(shown, "[sealed]") || strings.Contains(shown, tok.Text()[60:]) {
			t.Errorf("got %q", shown)
		}
	}
}

// FuzzParse: what parses is spelt in the one way.
func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add("SWMTKN-1-")
	f.Fuzz(func(t *testing.T, in string) {
		if tok, err := join.Parse(in); err == nil && tok.Text() != in {
			t.Errorf("%q became %q", in, tok.Text())
		}
	})
}
