package main

import (
	"testing"

	"github.com/lazyrestore/lazyrestore/cmd/internal/cli/clitest"
	"github.com/lazyrestore/lazyrestore/cmd/internal/verb"
	"github.com/lazyrestore/lazyrestore/lazyrestore"
)

// Each field of what a verb prints as JSON has a row in its help and its manual, and each row is of a field.
func TestObjectsAreDocumented(t *testing.T) {
	printed := map[string][]any{
		"checkpoint": {lazyrestore.CheckpointResult{}},
		"restore":    {lazyrestore.RestoreResult{}, lazyrestore.Stats{}},
		"inspect":    {inspection{}, listing{}},
		"verify":     {verified{}},
		"check":      {checkReport{}},
		"version":    {versionInfo{}},
		"completion": {completionScript{}},
	}
	for _, v := range verbs() {
		if v.build == nil {
			continue // its own tests look
		}
		def := v.build(new(command))
		if len(def.Objects) != len(printed[v.name]) || len(def.Objects) == 0 {
			t.Errorf("%s has tables of %d objects, want %d", v.name, len(def.Objects), len(printed[v.name]))
			continue
		}
		for i, o := range def.Objects {
			clitest.Documented(t, o, printed[v.name][i], "state")
		}
	}
	clitest.Documented(t, verb.FailureObject(), verb.Failure{})
}
