module tokenservice.dev/localcluster/pause

go 1.26
