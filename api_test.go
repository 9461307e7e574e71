package redistore

import (
	"bytes"
	"flag"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var rewrite = flag.Bool("update", false, "accept the exported API as it is, in testdata/api.txt")

// TestAPI compares what the package exports with testdata/api.txt, so that no change of
// it goes unseen. To accept one, and to note it in the changelog:
//
//	go test -run TestAPI . -update
func TestAPI(t *testing.T) {
	t.Parallel()
	const golden = "testdata/api.txt"
	got := exported(t)
	if *rewrite {
		must(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	for line := range strings.Lines(got) {
		if !strings.Contains("\n"+string(want), "\n"+line) {
			t.Errorf("new, or changed: %s", line)
		}
	}
	for line := range strings.Lines(string(want)) {
		if !strings.Contains("\n"+got, "\n"+line) {
			t.Errorf("missing: %s", line)
		}
	}
	if t.Failed() {
		t.Log("if that is meant: go test -run TestAPI . -update, and a line in CHANGELOG.md")
	}
}

var ofAnUnexportedType = regexp.MustCompile(`^func \(\*?\p{Ll}`)

// exported lists functions, methods, fields, variables and constants, each in one line
// with its type, sorted. What it does not depend on is comments, order and gofmt.
func exported(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	must(t, err)
	more, err := filepath.Glob("redistoretest/*.go")
	must(t, err)
	fset := token.NewFileSet()
	text := func(node any) string {
		var b bytes.Buffer
		must(t, printer.Fprint(&b, fset, node))
		return regexp.MustCompile(`\s+`).ReplaceAllString(b.String(), " ")
	}
	var lines []string
	for _, name := range append(files, more...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		must(t, err)
		first := len(lines)
		ast.FileExports(file)
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				f.Body = nil
				if f.Recv != nil {
					f.Recv.List[0].Names = nil
				}
				if line := text(f); !ofAnUnexportedType.MatchString(line) {
					lines = append(lines, line)
				}
				continue
			}
			for _, spec := range decl.(*ast.GenDecl).Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					lines = append(lines, members(spec, text)...)
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						line := decl.(*ast.GenDecl).Tok.String() + " " + name.Name
						if spec.Type != nil {
							line += " " + text(spec.Type)
						}
						lines = append(lines, line)
					}
				}
			}
		}
		if file.Name.Name != "redistore" {
			for i := range lines[first:] {
				lines[first+i] = file.Name.Name + ": " + lines[first+i]
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// members are a type and what it has, other than methods of its own.
func members(spec *ast.TypeSpec, text func(any) string) []string {
	head := "type " + spec.Name.Name
	var fields *ast.FieldList
	switch kind := spec.Type.(type) {
	case *ast.StructType:
		head, fields = head+" struct", kind.Fields
	case *ast.InterfaceType:
		head, fields = head+" interface", kind.Methods
	default:
		return []string{"type " + text(spec)}
	}
	lines := []string{head}
	for _, f := range fields.List {
		if len(f.Names) == 0 {
			lines = append(lines, head+", embedded "+text(f.Type))
		}
		for _, name := range f.Names {
			lines = append(lines, head+", "+name.Name+" "+text(f.Type))
		}
	}
	return lines
}
