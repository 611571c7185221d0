// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools names the command that `hack/controlplane/build` builds, so that `go mod tidy` keeps what it needs.
package tools

import _ "golang.zx2c4.com/wireguard"
