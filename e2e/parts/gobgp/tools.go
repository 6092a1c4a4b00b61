//go:build tools

// Package parts pins the GoBGP that ours talks to.
package parts

import (
	_ "github.com/osrg/gobgp/v4/cmd/gobgp"
	_ "github.com/osrg/gobgp/v4/cmd/gobgpd"
)
