module wirekube.io/hack/kind/pause

go 1.24
