// SPDX-License-Identifier: Apache-2.0

//go:build tools

// Package tools names the commands that `hack/controlplane/build` builds, so that `go mod tidy` keeps what they need.
package tools

import (
	_ "helm.sh/helm/v4/cmd/helm"
)
