package object

import (
	"crypto/rand"
	"math/big"
	"strconv"
)

// RandomName is for what users give no name: containers, services. Later tries
// at a name that is free are longer.
func RandomName(try int) string {
	left := []string{
		"amber", "bold", "brisk", "bright", "busy", "calm", "candid", "clever", "cosy", "crisp", "deft", "eager",
		"earnest", "fair", "fleet", "fond", "frank", "gentle", "glad", "golden", "happy", "hardy", "honest", "humble",
		"keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "mild", "modest", "neat", "nimble", "patient",
		"placid", "plucky", "polite", "proud", "quick", "quiet", "ready", "serene", "sharp", "sunny", "sweet", "tidy",
		"trusty", "vivid", "warm", "wise", "witty", "zesty",
	}
	right := []string{
		"acacia", "alder", "apiary", "aster", "basswood", "bee", "bellflower", "borage", "bramble", "buckwheat",
		"burrow", "catmint", "cherry", "clover", "cluster", "comb", "cowslip", "crocus", "dandelion", "drone",
		"elder", "fennel", "foxglove", "gorse", "hawthorn", "hazel", "heather", "hive", "honey", "hyssop", "ivy",
		"keeper", "lavender", "linden", "lupin", "mallow", "maple", "meadow", "nectar", "nursery", "orchard", "pollen",
		"poppy", "primrose", "propolis", "queen", "rosemary", "sage", "skep", "smoker", "swarm", "thyme", "vetch",
		"wax", "willow",
	}
	name := left[pick(len(left))] + "_" + right[pick(len(right))]
	if try > 0 {
		name += strconv.Itoa(pick(10 * try))
	}
	return name
}

func pick(n int) int {
	i, err := rand.Int(rand.Reader, big.NewInt(int64(n)))
	if err != nil {
		panic(err) // the kernel's random numbers never fail
	}
	return int(i.Int64())
}
