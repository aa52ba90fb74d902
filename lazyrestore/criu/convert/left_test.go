package convert

import "testing"

// What restores leave in a set, and write anew into the image when they are of that, is not in the image: it
// would be damaged by its own use.
func TestWhatARestoreLeaves(t *testing.T) {
	dir := madeSet(t)
	want := load(t, dir)
	for _, name := range []string{"stats-restore", "restore.log", "criu.pid", "lazy-pages.state", "lazy-pages.held", "lazy-pages.lock"} {
		write(t, dir, name, "of a restore")
	}
	write(t, dir, "stats-dump", "of the dump")
	want["stats-dump"] = []byte("of the dump")
	mem, err := importSet(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := exportImage(t, mem)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, want)
}
