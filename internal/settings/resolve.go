package settings

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Source is where a value came from.
type Source struct {
	From string // "default", "file", "environment" or "flag"
	At   string // file and line, the variable, or the flag; "" for a default
}

// String is the source for people.
func (s Source) String() string {
	if s.At == "" {
		return s.From
	}
	return s.From + " " + s.At
}

// The sources, by growing weight.
const (
	FromDefault = "default"
	FromFile    = "file"
	FromEnv     = "environment"
	FromFlag    = "flag"
)

// Value is what an option has.
type Value struct {
	Option *Option
	Values []string // one, or those of a list
	Source Source
}

// Text is the value of an option that has one.
func (v *Value) Text() string { return strings.Join(v.Values, ",") }

// Input is where values come from.
type Input struct {
	Prefix  string   // of the variables in the environment, such as OPSTREAM_
	Environ []string // as os.Environ returns it
	File    string   // path of the configuration, "" for none
	// Flags are what the command line gave, by option, each as often as it was given. They are not checked yet.
	Flags map[string][]string
	// Defaults are those that differ from the table's, by option.
	Defaults map[string]string
	// Used says which options the environment may give; of others nothing there is looked at. Default: all.
	Used func(name string) bool
	// Ignored are names in the environment that begin with the prefix and are somebody else's; one that ends in * stands for all
	// that begin so.
	Ignored []string
}

// Result is the configuration.
type Result struct {
	Values []Value // in the order of the table
	// Unknown are variables of the environment that look like options and are none, each with what was most likely meant.
	Unknown []string
}

// Get returns the value of an option of the table.
func (r *Result) Get(name string) *Value {
	for i := range r.Values {
		if r.Values[i].Option.Name == name {
			return &r.Values[i]
		}
	}
	return nil
}

// Resolve finds the value of every option: of its default, the file, the environment and the flags the last one that gives it.
// A variable that is set to nothing gives nothing. The error joins everything that is wrong; the result is good without it only.
func (t Table) Resolve(in Input) (*Result, error) {
	var faults []error
	var file map[string]entry
	if in.File != "" {
		data, err := readConfig(in.File)
		if err != nil {
			faults = append(faults, err)
		} else {
			var wrong []error
			file, wrong = t.parse(in.File, data)
			faults = append(faults, wrong...)
		}
	}
	env := map[string]string{}
	for _, pair := range in.Environ {
		if name, value, ok := strings.Cut(pair, "="); ok && strings.HasPrefix(name, in.Prefix) {
			env[name] = value
		}
	}
	r := &Result{Values: make([]Value, len(t))}
	for i := range t {
		o := &t[i]
		v := Value{Option: o, Source: Source{From: FromDefault}}
		def := o.Default
		if other, ok := in.Defaults[o.Name]; ok {
			def = other
		}
		v.Values = o.textOf(def)
		if e, ok := file[o.Name]; ok {
			v.Values, v.Source = e.values, Source{FromFile, fmt.Sprintf("%s:%d", in.File, e.line)}
		}
		if text := env[o.Env(in.Prefix)]; text != "" && (in.Used == nil || in.Used(o.Name)) {
			v.Values, v.Source = o.textOf(text), Source{FromEnv, o.Env(in.Prefix)}
			if err := o.check(v.Values); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", o.Env(in.Prefix), err))
			}
		}
		if given, ok := in.Flags[o.Name]; ok {
			v.Source = Source{FromFlag, "--" + o.Name}
			if v.Values = given[len(given)-1:]; o.Kind == List {
				v.Values = []string{}
				for _, text := range given {
					v.Values = append(v.Values, split(text)...)
				}
			}
			if err := o.checkFlag(v.Values); err != nil {
				faults = append(faults, fmt.Errorf("--%s: %w", o.Name, err))
			}
		}
		r.Values[i] = v
	}
	r.Unknown = t.unknownIn(env, in)
	return r, errors.Join(faults...)
}

// checkFlag is check, and refuses a secret on the command line, which every user of the machine can read.
func (o *Option) checkFlag(values []string) error {
	if o.Kind == Password && len(values) == 1 && values[0] != "" && Secret(values[0]).Reference() == "" {
		return errors.New("expected a reference to the secret, file:/path or env:NAME, since everybody on the machine can read command lines, but got the secret itself")
	}
	return o.check(values)
}

func (o *Option) textOf(text string) []string {
	if o.Kind == List {
		return split(text)
	}
	return []string{text}
}

// unknownIn tells of variables that look like options.
func (t Table) unknownIn(env map[string]string, in Input) []string {
	names := make([]string, len(t))
	for i := range t {
		names[i] = t[i].Env(in.Prefix)
	}
	var out []string
	for name := range env {
		if slices.Contains(names, name) || slices.ContainsFunc(in.Ignored, func(pattern string) bool {
			begin, all := strings.CutSuffix(pattern, "*")
			return name == pattern || all && strings.HasPrefix(name, begin)
		}) || injected(name, in.Prefix) {
			continue
		}
		out = append(out, unknown("variable", name, names).Error())
	}
	slices.Sort(out)
	return out
}

// injected says whether the variable is one of those by which Kubernetes tells every container of the services beside it: those
// of a service whose name begins as the prefix does look like options, and are nobody's mistake.
func injected(name, prefix string) bool {
	rest := strings.TrimPrefix(name, prefix)
	if strings.HasSuffix(rest, "SERVICE_HOST") || strings.Contains(rest, "SERVICE_PORT") {
		return true
	}
	parts := strings.Split(rest, "_")
	for i, part := range parts {
		if part == "PORT" && (i == len(parts)-1 || i+2 < len(parts) && (parts[i+2] == "TCP" || parts[i+2] == "UDP" || parts[i+2] == "SCTP")) {
			return true
		}
	}
	return false
}
