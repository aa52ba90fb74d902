package criucli

// An argKind says whether an option has an argument.
type argKind uint8

const (
	none     argKind = iota
	flag             // none, and --no-NAME takes it back
	required         // the next word, or behind "="
	optional         // behind "=" alone
)

// A known is an option of CRIU's.
type known struct {
	name  string
	short byte // 0 if there is none
	arg   argKind
}

// options is CRIU's list (4.1: criu/config.c).
var options = []known{
	{"tree", 't', required},
	{"leave-stopped", 's', none},
	{"leave-running", 'R', none},
	{"restore-detached", 'd', flag},
	{"restore-sibling", 'S', flag},
	{"daemon", 'd', flag},
	{"images-dir", 'D', required},
	{"work-dir", 'W', required},
	{"log-file", 'o', required},
	{"log-pid", 0, flag},
	{"verbosity", 'v', optional},
	{"version", 'V', none},
	{"help", 'h', none},
	{"root", 'r', required},
	{"join-ns", 'J', required},
	{"lsm-profile", 0, required},
	{"lsm-mount-context", 0, required},
	{"shell-job", 'j', flag},
	{"file-locks", 'l', flag},
	{"libdir", 'L', required},
	{"external", 0, required},
	{"ext-unix-sk", 'x', optional},
	{"ext-mount-map", 'M', required},
	{"enable-external-sharing", 0, none},
	{"enable-external-masters", 0, none},
	{"tcp-established", 0, flag},
	{"tcp-close", 0, flag},
	{"skip-in-flight", 0, flag},
	{"evasive-devices", 0, flag},
	{"pidfile", 0, required},
	{"veth-pair", 0, required},
	{"action-script", 0, required},
	{"link-remap", 0, flag},
	{"track-mem", 0, flag},
	{"auto-dedup", 0, flag},
	{"prev-images-dir", 0, required},
	{"page-server", 0, flag},
	{"address", 0, required},
	{"port", 0, required},
	{"ps-socket", 0, required},
	{"status-fd", 0, required},
	{"exec-cmd", 0, none},
	{"manage-cgroups", 0, optional},
	{"cgroup-root", 0, required},
	{"cgroup-props", 0, required},
	{"cgroup-props-file", 0, required},
	{"cgroup-dump-controller", 0, required},
	{"cgroup-yard", 0, required},
	{"freeze-cgroup", 0, required},
	{"inherit-fd", 0, required},
	{"feature", 0, required},
	{"extra", 0, flag},
	{"experimental", 0, flag},
	{"all", 0, none},
	{"skip-mnt", 0, required},
	{"enable-fs", 0, required},
	{"ghost-limit", 0, required},
	{"ghost-fiemap", 0, flag},
	{"irmap-scan-path", 0, required},
	{"force-irmap", 0, flag},
	{"timeout", 0, required},
	{"cpu-cap", 0, optional},
	{"empty-ns", 0, required},
	{"deprecated", 0, flag},
	{"display-stats", 0, flag},
	{"weak-sysctls", 0, flag},
	{"lazy-pages", 0, none},
	{"stream", 0, flag},
	{"mntns-compat-mode", 0, flag},
	{"network-lock", 0, required},
	{"unprivileged", 0, flag},
	{"orphan-pts-master", 0, none},
	{"tls", 0, flag},
	{"tls-cacert", 0, required},
	{"tls-cacrl", 0, required},
	{"tls-cert", 0, required},
	{"tls-key", 0, required},
	{"tls-no-cn-verify", 0, none},
	{"config", 0, required},
	{"no-default-config", 0, none},
	{"pre-dump-mode", 0, required},
	{"file-validation", 0, required},
	{"skip-file-rwx-check", 0, flag},
	{"allow-uprobes", 0, none},
}
