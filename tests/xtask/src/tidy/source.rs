//! A Rust file as tokens, so that comments and strings never count.

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::Visit;

use super::Finding;

/// A parsed Rust file.
#[derive(Debug)]
pub struct Source<'a> {
    /// Path from the root of the tree.
    pub path: &'a str,
    /// Contents.
    pub text: &'a str,
    /// Every identifier and keyword with its line, in order, inside macros too.
    pub words: Vec<(String, usize)>,
    /// Attributes of the file itself, such as `forbid (unsafe_code)`, without spaces.
    pub inner_attributes: Vec<String>,
    /// Every function: name, first line, number of lines.
    pub functions: Vec<(String, usize, usize)>,
}

impl<'a> Source<'a> {
    /// Parses a file, or says why it is not Rust.
    pub fn parse(path: &'a str, text: &'a str) -> Result<Source<'a>, Finding> {
        let file = syn::parse_file(text).map_err(|error| {
            let line = error.span().start().line;
            Finding::new(path, line, format!("does not parse: {error}"), "sources are valid Rust")
        })?;
        let tokens: TokenStream = text.parse().map_err(|error| {
            Finding::new(path, 1, format!("does not parse: {error}"), "sources are valid Rust")
        })?;
        let mut words = Vec::new();
        collect_words(tokens, &mut words);
        let inner_attributes = file.attrs.iter().map(attribute_text).collect();
        let mut functions = Functions::default();
        functions.visit_file(&file);
        Ok(Source { path, text, words, inner_attributes, functions: functions.0 })
    }

    /// The lines on which an attribute anywhere in the file lowers the lint `unsafe_code`.
    pub fn lowered_unsafe_lint(&self) -> impl Iterator<Item = usize> {
        const LEVELS: [&str; 5] = ["allow", "warn", "expect", "deny", "forbid"];
        self.words.iter().enumerate().filter_map(|(index, (word, line))| {
            // The nearest level before the lint is the one that applies: between them there
            // are only other lints of the same list.
            let level = self.words[..index].iter().rev().find(|(w, _)| LEVELS.contains(&&**w));
            let lowers = level.is_some_and(|(level, _)| LEVELS[..3].contains(&&**level));
            (word == "unsafe_code" && lowers).then_some(*line)
        })
    }
}

fn attribute_text(attribute: &syn::Attribute) -> String {
    let path = attribute.path().segments.iter().map(|s| s.ident.to_string()).collect::<String>();
    match &attribute.meta {
        syn::Meta::List(list) => {
            let inside: String = list.tokens.to_string().split_whitespace().collect();
            format!("{path}({inside})")
        }
        _ => path,
    }
}

fn collect_words(tokens: TokenStream, words: &mut Vec<(String, usize)>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect_words(group.stream(), words),
            TokenTree::Ident(ident) => {
                words.push((ident.to_string(), ident.span().start().line));
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

#[derive(Default)]
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let first = signature.fn_token.span.start().line;
        let last = block.brace_token.span.close().end().line;
        self.0.push((signature.ident.to_string(), first, last + 1 - first));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.add(&item.sig, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(&item.sig, block);
        }
        syn::visit::visit_trait_item_fn(self, item);
    }
}
