// Package images keeps the node's images.
package images
