// Package policy decides with Rego: which trust a verifier's claims deserve
// (attestation policies) and which resource a token opens (resource policy).
//
// Policies of both kinds may have a rule reasons, a set of strings, that says for
// people why a guest is not affirmed or a resource not opened: see
// Appraisal.Reasons. It decides nothing.
//
// Place in the data path: package attestation asks Appraise, the resource
// endpoint asks Allow; Set finds the policy in the store or the one built in.
//
// Trust: policy text comes from the administrator and is compiled with a
// reduced set of builtins: no network, no environment, no randomness. Input and
// data come from guests and are data only. Every evaluation has a time limit;
// its memory has none, so who may upload policies could exhaust this process.
//
// Source: trustee deps/policy-engine and attestation-service/docs/policy.md at
// 78962cd4; evaluation by github.com/open-policy-agent/opa.
package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/types"
)

// What callers tell apart.
var (
	// ErrPolicy says that a text is no policy this engine takes.
	ErrPolicy = errors.New("not a usable policy")
	// ErrEval says that an evaluation ended without a usable result.
	ErrEval = errors.New("policy evaluation")
	// ErrSlow says that an evaluation ran out of time; it is an ErrEval or, on
	// upload, an ErrPolicy too.
	ErrSlow = errors.New("over the time limit")
)

const (
	// MaxTextBytes is the longest policy.
	MaxTextBytes = 512 << 10
	// DefaultTimeout bounds one evaluation.
	DefaultTimeout = 5 * time.Second

	packagePath   = "data.policy"
	claimsRule    = "trust_claims"
	reasonsRule   = "reasons"
	appraiseQuery = `x := {"claims": [c | c := data.policy.trust_claims], "extensions": [e | e := data.policy.extensions]}`
	allowQuery    = `x := data.policy.allow`
	reasonsQuery  = `x := data.policy.reasons`
)

// Reference finds a reference value by name: any JSON value, or nil when there
// is none.
type Reference func(ctx context.Context, name string) (any, error)

// Engine compiles policies.
type Engine struct {
	// Reference answers query_reference_value; nil knows no values.
	Reference Reference
	// Timeout bounds one evaluation; zero means DefaultTimeout.
	Timeout time.Duration
}

// Policy is a compiled policy. It may be used by any number of goroutines.
type Policy struct {
	id       string
	timeout  time.Duration
	compiler *ast.Compiler
	appraise rego.PreparedEvalQuery
	// hasClaims and hasReasons tell of rules that a policy need not have.
	hasClaims, hasReasons bool
}

// Compile checks the text of the policy id and prepares it. A text that does
// not parse, is not of package policy, uses a builtin outside the reduced set,
// or is recursive is ErrPolicy.
func (e Engine) Compile(ctx context.Context, id, text string) (*Policy, error) {
	if len(text) > MaxTextBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, want at most %d", ErrPolicy, id, len(text), MaxTextBytes)
	}
	caps := capabilities()
	module, err := ast.ParseModuleWithOpts(id, text, ast.ParserOptions{Capabilities: caps, RegoVersion: ast.RegoV1})
	if err != nil {
		return nil, fmt.Errorf("%w: parsing %s: %w", ErrPolicy, id, err)
	}
	if module == nil || module.Package.Path.String() != packagePath {
		return nil, fmt.Errorf(`%w: %s must start with "package policy"`, ErrPolicy, id)
	}
	p := &Policy{id: id, timeout: e.Timeout}
	if p.timeout <= 0 {
		p.timeout = DefaultTimeout
	}
	for _, rule := range module.Rules {
		name := rule.Head.Ref()[0].Value
		p.hasClaims = p.hasClaims || name.Compare(ast.Var(claimsRule)) == 0
		// A function of that name is the policy's own affair.
		p.hasReasons = p.hasReasons || name.Compare(ast.Var(reasonsRule)) == 0 && len(rule.Head.Args) == 0
	}
	query := appraiseQuery
	if p.hasReasons {
		query += `; y := [r | r := data.policy.reasons]`
	}
	r := rego.New(
		rego.Query(query), rego.ParsedModule(module), rego.Capabilities(caps), e.referenceBuiltin(),
		rego.CompilerHook(func(c *ast.Compiler) { p.compiler = c }),
	)
	if p.appraise, err = r.PrepareForEval(ctx); err != nil {
		return nil, fmt.Errorf("%w: compiling %s: %w", ErrPolicy, id, err)
	}
	return p, nil
}

// Try evaluates the policy on an empty input, so that one that never ends is
// refused on upload, with ErrPolicy and ErrSlow. Any other outcome is fine: on
// nothing, most policies say nothing.
func (p *Policy) Try(ctx context.Context) error {
	empty := map[string]any{}
	_, errAppraise := p.eval(ctx, p.appraise, empty)
	if _, err := p.Allow(ctx, empty, empty); errors.Is(errors.Join(errAppraise, err), ErrSlow) {
		return fmt.Errorf("%w: trying %s on empty input: %w", ErrPolicy, p.id, ErrSlow)
	}
	return nil
}

// Allow tells whether data.policy.allow is true for the input (the claims of a
// token) and data (what is asked for). Undefined and anything but true is no.
// An evaluation that breaks is ErrEval.
func (p *Policy) Allow(ctx context.Context, input, data map[string]any) (bool, error) {
	x, err := p.ask(ctx, allowQuery, input, data)
	return x == true, err
}

// Reasons evaluates data.policy.reasons, a set of strings, for what Allow said
// no to. Most policies have no such rule, and then there are none. See
// Appraisal.Reasons for what is kept. An evaluation that breaks is ErrEval.
func (p *Policy) Reasons(ctx context.Context, input, data map[string]any) ([]string, error) {
	if !p.hasReasons {
		return nil, nil
	}
	x, err := p.ask(ctx, reasonsQuery, input, data)
	return ReadReasons(x), err
}

// ask returns the value of the query, nil when it is undefined.
func (p *Policy) ask(ctx context.Context, query string, input, data map[string]any) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	value, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, fmt.Errorf("%w %s: encoding the input: %w", ErrEval, p.id, err)
	}
	// The data differ for every call, so only the policy is compiled ahead.
	db := inmem.NewFromObjectWithOpts(data, inmem.OptRoundTripOnWrite(false))
	rs, err := rego.New(rego.Query(query), rego.Compiler(p.compiler), rego.Store(db), rego.ParsedInput(value)).Eval(ctx)
	if err != nil {
		return nil, p.evalError(ctx, err)
	}
	if len(rs) != 1 {
		return nil, nil
	}
	return rs[0].Bindings["x"], nil
}

func (p *Policy) eval(ctx context.Context, q rego.PreparedEvalQuery, input any) (rego.ResultSet, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	value, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, fmt.Errorf("%w %s: encoding the input: %w", ErrEval, p.id, err)
	}
	rs, err := q.Eval(ctx, rego.EvalParsedInput(value))
	if err != nil {
		return nil, p.evalError(ctx, err)
	}
	return rs, nil
}

func (p *Policy) evalError(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%w %s: %w (%s): %w", ErrEval, p.id, ErrSlow, p.timeout, err)
	}
	return fmt.Errorf("%w %s: %w", ErrEval, p.id, err)
}

// referenceBuiltin is query_reference_value(name): the value, or null.
func (e Engine) referenceBuiltin() func(*rego.Rego) {
	decl := &rego.Function{
		Name: referenceFunction, Decl: types.NewFunction(types.Args(types.S), types.A),
		Memoize: true, Nondeterministic: true,
	}
	return rego.Function1(decl, func(bctx rego.BuiltinContext, name *ast.Term) (*ast.Term, error) {
		text, ok := name.Value.(ast.String)
		if !ok || e.Reference == nil {
			return ast.NullTerm(), nil
		}
		v, err := e.Reference(bctx.Context, string(text))
		if err != nil {
			return nil, rego.NewHaltError(fmt.Errorf("querying reference value %s: %w", name, err))
		}
		value, err := ast.InterfaceToValue(v)
		if err != nil {
			return nil, rego.NewHaltError(fmt.Errorf("reading reference value %s: %w", name, err))
		}
		return ast.NewTerm(value), nil
	})
}
