package cli

import "strings"

// Complete gives what the last of words can be, and the kind of operand that
// it is, if it is one. A line is a word, and after a tab what it means.
func (c *Command) Complete(words []string) (lines []string, operand Operand) {
	last := words[len(words)-1]
	if len(words) > 1 {
		if f := c.awaiting(words[len(words)-2]); f != nil {
			return Matching(f.Choices, last), f.Operand
		}
	}
	if name, value, has := strings.Cut(last, "="); has && strings.HasPrefix(name, "--") {
		if f := c.flag(name[2:]); f != nil {
			for _, choice := range Matching(f.Choices, value) {
				lines = append(lines, name+"="+choice)
			}
		}
		return lines, OperandNone
	}
	if strings.HasPrefix(last, "-") {
		for i := range c.Flags {
			if f := &c.Flags[i]; !f.Hidden {
				lines = append(lines, "--"+f.Name+"\t"+f.Usage)
			}
		}
		return Matching(append(lines, "--help\tPrint the help text"), last), OperandNone
	}
	return nil, c.Operand
}

// awaiting is the flag that word is, if it needs a value that has not come.
func (c *Command) awaiting(word string) *Flag {
	var f *Flag
	switch {
	case strings.HasPrefix(word, "--"):
		f = c.flag(word[2:])
	case len(word) > 1 && word[0] == '-':
		f = c.short(word[len(word)-1])
	}
	if f == nil || !f.takesText() {
		return nil
	}
	return f
}

// Matching are the lines that begin with prefix.
func Matching(lines []string, prefix string) []string {
	var found []string
	for _, l := range lines {
		if strings.HasPrefix(l, prefix) {
			found = append(found, l)
		}
	}
	return found
}

// Shells lists the shells that there is a script for.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// CompletionScript makes a shell ask "program verb -- WORD..." for completions,
// and complete paths itself where a line says ":directory" or ":file". It is ""
// for a shell that is not known.
func CompletionScript(program, verb, shell string) string {
	script := map[string]string{"bash": bashScript, "zsh": zshScript, "fish": fishScript}[shell]
	return strings.NewReplacer("PROGRAM", program, "VERB", verb).Replace(script)
}

const bashScript = `# bash completion for PROGRAM
_PROGRAM() {
    local cur=${COMP_WORDS[COMP_CWORD]} line
    local words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
    # Bash parts --flag=value into three words; the program is told two.
    if [[ $cur == "=" ]]; then
        cur=""
    elif (( COMP_CWORD > 1 )) && [[ ${COMP_WORDS[COMP_CWORD-1]} == "=" ]]; then
        words=("${COMP_WORDS[@]:1:COMP_CWORD-2}")
    fi
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
        :directory) compopt -o filenames; mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$cur") ;;
        :file) compopt -o filenames; mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur") ;;
        *) COMPREPLY+=("${line%%$'\t'*}") ;;
        esac
    done < <("${COMP_WORDS[0]}" VERB -- "${words[@]}" "$cur" 2>/dev/null)
}
complete -F _PROGRAM PROGRAM
`

const zshScript = `#compdef PROGRAM
# zsh completion for PROGRAM
_PROGRAM() {
    local line paths=""
    local -a found
    while IFS= read -r line; do
        case $line in
        :directory) paths=directory ;;
        :file) paths=file ;;
        *) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
        esac
    done < <("${words[1]}" VERB -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    (( ${#found} )) && _describe PROGRAM found
    case $paths in
    directory) _files -/ ;;
    file) _files ;;
    esac
}
if [ "$funcstack[1]" = "_PROGRAM" ]; then
    _PROGRAM "$@"
else
    compdef _PROGRAM PROGRAM
fi
`

const fishScript = `# fish completion for PROGRAM
function __PROGRAM_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in ($words[1] VERB -- $words[2..-1] "$current" 2>/dev/null)
        switch $line
            case :directory
                __fish_complete_directories "$current"
            case :file
                __fish_complete_path "$current"
            case '*'
                echo $line
        end
    end
end
complete -c PROGRAM -f -a '(__PROGRAM_complete)'
`
