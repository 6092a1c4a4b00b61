//go:build tools

// Package parts pins the MetalLB that ours is measured beside.
package parts

import (
	_ "go.universe.tf/metallb/controller"
	_ "go.universe.tf/metallb/speaker"
)
