package main

// buildVersion is set by the linker, as lazyrestore's own is.
var buildVersion = "devel"

func version() string { return buildVersion }
