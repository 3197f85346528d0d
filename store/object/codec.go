package object

import (
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// Encode is the one encoding of everything that nodes keep or send: CBOR, and
// deterministic, so that equal values have equal encodings.
func Encode(v any) ([]byte, error) { return codec().enc.Marshal(v) }

// Decode undoes Encode, strictly: unknown and duplicate fields, tags,
// indefinite lengths and trailing bytes are errors. The caller has limited the
// length of data, and throws v away if there is an error.
func Decode(data []byte, v any) error { return codec().dec.Unmarshal(data, v) }

type modes struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

// codec is made at first use: a process that is only a container's init never
// needs it.
var codec = sync.OnceValue(func() modes {
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeRFC3339NanoUTC
	eo.OmitEmpty = cbor.OmitEmptyCBORValue
	eo.TagsMd = cbor.TagsForbidden
	enc, err := eo.EncMode()
	if err != nil {
		panic(fmt.Sprintf("make encoding mode: %v", err))
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		UTF8:              cbor.UTF8RejectInvalid,
		MaxNestedLevels:   16,
		MaxArrayElements:  1 << 16,
		MaxMapPairs:       1 << 12,
	}.DecMode()
	if err != nil {
		panic(fmt.Sprintf("make decoding mode: %v", err))
	}
	return modes{enc, dec}
})
