package lazyrestore_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lazyrestore/lazyrestore/lazyrestore"
	"github.com/lazyrestore/lazyrestore/uffd/uffdtest"
)

// A program is one that people run, with a piece of work of some seconds.
type program struct {
	name  string
	needs []string          // of uffdtest.Need
	files map[string]string // laid into its directory first
	line  string            // for sh -c, which executes it
	env   []string
	// midway says that it is in the middle of its work.
	midway func(dir string) bool
	// result is what it has made in the end, the same each time.
	result func(t testing.TB, dir string) string
}

const perlWork = `
$| = 1;
use Digest::SHA qw(sha256_hex);
my (%count, $text);
for my $round (1 .. 30) {
	$text = sha256_hex(($text // '') . $round);
	for my $i (1 .. 15000) {
		my $key = substr($text, $i % 60, 4) . ($i % 977);
		$count{$key} = ($count{$key} // 0) * 31 % 1000003 + $i;
	}
	print "step $round\n";
}
my $sum = sha256_hex(join ',', map { "$_=$count{$_}" } sort keys %count);
print "result $sum\n";
`

// A compiler at work, threads that wait for each other, timers, and input and
// output by a pool of threads.
const nodeWork = `
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const fs = require('fs'), crypto = require('crypto');
function work(seed, n) {
	let x = seed >>> 0, list = [];
	for (let i = 0; i < n; i++) {
		x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
		if ((x & 1023) === 0) list.push({ x, i, s: String(x) });
		if (list.length > 500) list = list.filter((e, j) => j & 1);
	}
	return list.reduce((a, e) => (a + e.x + e.s.length) >>> 0, x);
}
if (!isMainThread) {
	parentPort.on('message', (round) => parentPort.postMessage([round, work(workerData + round, 3000000)]));
} else {
	const workers = [1, 2, 3, 4].map((seed) => new Worker(__filename, { workerData: seed }));
	const hash = crypto.createHash('sha256');
	const ask = (w, round) => new Promise((done) => { w.once('message', done); w.postMessage(round); });
	let ticks = 0;
	const timer = setInterval(() => ticks++, 5);
	(async () => {
		for (let round = 1; round <= 12; round++) {
			const answers = await Promise.all(workers.map((w) => ask(w, round)));
			hash.update(JSON.stringify(answers) + work(round, 500000));
			await fs.promises.appendFile('log', 'round ' + round + '\n');
			await new Promise((done) => setTimeout(done, 3));
			console.log('step ' + round);
		}
		clearInterval(timer);
		for (const w of workers) await w.terminate();
		console.log('result ' + hash.digest('hex') + ' ' + fs.readFileSync('log', 'utf8').length + ' ' + (ticks > 10));
	})();
}
`

const sqliteWork = `
PRAGMA journal_mode = delete;
PRAGMA cache_size = 50;
CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, s TEXT);
CREATE INDEX at_v ON t (v);
BEGIN IMMEDIATE;
INSERT INTO t SELECT value, value * 7919 % 100003, hex(value * 31) FROM generate_series(1, 60000);
UPDATE t SET v = v * 31 % 99991 WHERE id % 2 = 0;
DELETE FROM t WHERE v % 5 = 3;
INSERT INTO t SELECT id + 1000000, v + 1, s || 'x' FROM t WHERE id % 3 = 0;
COMMIT;
PRAGMA integrity_check;
SELECT 'result', count(*), sum(v), sum(id), max(s) FROM t;
`

func grows(name string, beyond int64) func(dir string) bool {
	return func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err == nil && info.Size() > beyond
	}
}

func says(pattern string) func(dir string) bool {
	re := regexp.MustCompile(pattern)
	return func(dir string) bool {
		text, err := os.ReadFile(filepath.Join(dir, "out"))
		return err == nil && re.Match(text)
	}
}

func sumOf(name string) func(t testing.TB, dir string) string {
	return func(t testing.TB, dir string) string {
		return fmt.Sprintf("%x", sha256.Sum256(must(os.ReadFile(filepath.Join(dir, name)))(t)))
	}
}

func linesOf(name, pattern string) func(t testing.TB, dir string) string {
	return func(t testing.TB, dir string) string {
		text := must(os.ReadFile(filepath.Join(dir, name)))(t)
		return strings.Join(regexp.MustCompile(pattern).FindAllString(string(text), -1), "\n")
	}
}

// compressible is input for compressors: words in an order that repeats now
// and then.
func compressible(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	words := make([]string, 3000)
	for i := range words {
		words[i] = fmt.Sprintf("%x ", r.Uint64()>>r.IntN(48))
	}
	for b.Len() < n {
		b.WriteString(words[min(r.IntN(3000), r.IntN(3000))])
	}
	return b.String()
}

func realPrograms() []program {
	return []program{
		{
			name: "xz", needs: []string{"cmd:xz"}, files: map[string]string{"in": compressible(2 << 20)},
			line: "exec xz -6 -T1 -c in >packed", midway: grows("packed", 200<<10), result: sumOf("packed"),
		},
		{
			name: "zstd", needs: []string{"cmd:zstd"}, files: map[string]string{"in": compressible(6 << 20)},
			line: "exec zstd -q -12 -T1 in -o packed", midway: grows("packed", 200<<10), result: sumOf("packed"),
		},
		{
			name: "perl", needs: []string{"cmd:perl"}, files: map[string]string{"work.pl": perlWork},
			line: "exec perl work.pl", env: []string{"PERL_HASH_SEED=0"}, midway: says(`step 8\n`), result: linesOf("out", `(?m)^result .*$`),
		},
		{
			name: "node", needs: []string{"cmd:node"}, files: map[string]string{"work.js": nodeWork},
			line: "exec node work.js", midway: says(`step 3\n`), result: linesOf("out", `(?m)^result .*$`),
		},
		{
			name: "sqlite", needs: []string{"cmd:sqlite3"}, files: map[string]string{"work.sql": sqliteWork},
			line: "exec sqlite3 data.db '.read work.sql'", midway: grows("data.db-journal", 1000), result: linesOf("out", `(?m)^(ok|result.*)$`),
		},
		{
			name: "hpcc", needs: []string{"cmd:hpcc"}, files: map[string]string{"hpccinf.txt": hpccInput},
			line: "exec hpcc", env: []string{
				"OMPI_MCA_ess_singleton_isolated=1", "OMPI_MCA_btl=self", "OMPI_MCA_pml=ob1",
				"OMPI_MCA_oob=^tcp,usock", "OMPI_MCA_pmix=isolated", "HOME=/tmp",
				"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "OPENBLAS_NUM_THREADS=2",
			},
			midway: grows("hpccoutf.txt", 3000),
			result: linesOf("hpccoutf.txt", `(?m)^(Success=1|\|\|Ax-b\|\|.*|.*FAILED.*)$`),
		},
	}
}

// Real programs, interrupted twice in the middle of their work, end as they do
// without.
func TestRealPrograms(t *testing.T) {
	t.Parallel()
	for _, p := range realPrograms() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			uffdtest.Need(t, p.needs...)
			alone := t.TempDir()
			p.lay(t, alone)
			cmd := exec.Command("/bin/sh", "-c", p.line)
			out := must(os.Create(filepath.Join(alone, "out")))(t)
			defer out.Close()
			cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = alone, out, out, append([]string{"PATH=/usr/bin:/bin"}, p.env...)
			if err := cmd.Run(); err != nil {
				t.Fatalf("uninterrupted: %v", err)
			}
			want := p.result(t, alone)
			if want == "" {
				t.Fatal("uninterrupted, it has no result")
			}
			s := launch(t, startWith{scene: "-c", args: []string{p.line}, env: p.env, exe: "/bin/sh", lay: p.lay})
			s.await("be midway", func() bool { return p.midway(s.dir) })
			for _, how := range []lazyrestore.RestoreOptions{lazily, filling} {
				s.cycle(plainest, how)
			}
			for range 6 { // it has some seconds of work
				if ended(t, s.pid, patience) {
					break
				}
			}
			s.well()
			if got := p.result(t, s.dir); got != want {
				t.Errorf("it ended with\n%s\nand uninterrupted with\n%s", got, want)
			}
		})
	}
}

func (p *program) lay(t testing.TB, dir string) {
	t.Helper()
	for name, text := range p.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// hpccInput is the benchmark's input for one process of about 20 s of work:
// the distribution's, with one process and a larger problem.
const hpccInput = `HPLinpack benchmark input file
Innovative Computing Laboratory, University of Tennessee
HPL.out
8            device out
1            # of problems sizes (N)
600          Ns
1            # of NBs
80           NBs
0            PMAP
1            # of process grids (P x Q)
1            Ps
1            Qs
16.0         threshold
1            # of panel fact
2            PFACTs
1            # of recursive stopping criterium
4            NBMINs
1            # of panels in recursion
2            NDIVs
1            # of recursive panel fact.
1            RFACTs
1            # of broadcast
1            BCASTs
1            # of lookahead depth
1            DEPTHs
2            SWAP
64           swapping threshold
0            L1
0            U
1            Equilibration
8            memory alignment in double (> 0)
##### This line is ignored
0            Number of additional problem sizes for PTRANS
1200         values of N
0            number of additional blocking sizes for PTRANS
40           values of NB
`
