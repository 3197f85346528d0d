// Package engine is the Docker Engine API, version 1.24 to 1.51, over the swarm's store and this node's runtime.
package engine
