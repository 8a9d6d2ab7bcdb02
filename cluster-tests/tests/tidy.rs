//! What no compiler checks about the repository itself.
#![allow(clippy::unwrap_used, reason = "these helpers are part of the tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use cluster_tests::nemesis::{self, Class};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The repository's own files with this ending, and what is in them.
fn sources(ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with(".git") {
                    open.push(path);
                }
            } else if name.ends_with(ending) {
                found.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Every `HODEI-AREA-123` in a text.
fn codes(text: &str) -> BTreeSet<String> {
    let rest = |at: usize| &text[at..];
    let ends = |c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '-');
    text.match_indices("HODEI-")
        .map(|(at, _)| rest(at).split(ends).next().unwrap().to_owned())
        .filter(|code| code.rsplit('-').next().is_some_and(|n| n.len() == 3 && n.parse::<u16>().is_ok()))
        .collect()
}

#[test]
fn every_error_code_has_a_page_and_every_page_a_code() {
    let product = |path: &Path| ["node", "raft", "agent"].iter().any(|dir| path.starts_with(root().join(dir)));
    let used: BTreeSet<_> =
        sources(".rs").iter().filter(|(path, _)| product(path)).flat_map(|(_, text)| codes(text)).collect();
    let pages = fs::read_dir(root().join("docs/errors")).unwrap();
    let pages = pages.map(|entry| entry.unwrap().file_name().into_string().unwrap().replace(".md", ""));
    let pages: BTreeSet<_> = pages.filter(|page| page != "README").collect();
    assert_eq!(used, pages, "left: codes in the sources; right: pages in docs/errors");
    let list = fs::read_to_string(root().join("docs/errors/README.md")).unwrap();
    assert_eq!(codes(&list), pages, "docs/errors/README.md lists them all");
}

#[test]
fn files_fit_into_a_head() {
    let long: Vec<_> = sources(".rs")
        .into_iter()
        .filter_map(|(path, text)| {
            let lines = text.lines().count();
            (lines > 500).then(|| format!("{}: {lines} lines", path.display()))
        })
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Names of functions in backticks: `Handle::propose`, `plan`, `job::run::run`.
fn named_functions(text: &str) -> BTreeSet<String> {
    let names = text.split('`').skip(1).step_by(2);
    let last = names.map(|name| name.trim_end_matches("()").rsplit("::").next().unwrap());
    let is_function = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    last.filter(is_function).map(str::to_owned).collect()
}

#[test]
fn the_life_of_a_job_names_functions_that_exist() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let life = map.split("## The life of a job").nth(1).expect("the map tells the life of a job");
    let life = life.split("\n## ").next().unwrap();
    let steps = life.lines().filter(|line| line.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok())).count();
    assert!((6..=12).contains(&steps), "{steps} steps: at most a dozen, or the path is too long");

    let sources = sources(".rs");
    let exists = |name: &str| {
        let heads = [format!("fn {name}("), format!("fn {name}<")];
        sources.iter().any(|(_, text)| heads.iter().any(|head| text.contains(head)))
    };
    let names = named_functions(life);
    assert!(names.len() >= steps, "a real function at each hop");
    let missing: Vec<_> = names.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "not in the sources: {missing:?}");
}

#[test]
fn what_shows_that_leases_are_sound_exists() {
    let page = fs::read_to_string(root().join("docs/leases.md")).unwrap();
    let transcripts = root().join("raft/state/tests/scripts");
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    let named: BTreeSet<_> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
    let tests: String = sources(".rs").into_iter().map(|(_, text)| text).collect();
    let exists = |name: &str| match name.split_once(": ") {
        Some((file, test)) => {
            let places = ["cluster-tests/tests", "raft/tests"];
            places.iter().any(|dir| root().join(dir).join(file).exists()) && tests.contains(&format!("fn {test}()"))
        }
        None => transcripts.join(name).exists() || root().join(name).exists() || name == "lost_after",
    };
    let missing: Vec<_> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/leases.md names what is not there: {missing:?}");

    let files = fs::read_dir(transcripts).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let about: Vec<_> = files.filter(|name| name.starts_with("lease") || name == "fence").collect();
    let left_out: Vec<_> = about.iter().filter(|name| !named.contains(name.as_str())).collect();
    assert!(about.len() > 5 && left_out.is_empty(), "docs/leases.md does not name {left_out:?}");
}

/// What the product's sources name as `MACRO("NAME")`, without `prefix`.
fn named(macro_: &str, prefix: &str) -> BTreeSet<String> {
    let opening = format!("{macro_}!(\"{prefix}");
    let product = |path: &Path| ["node", "raft", "agent"].iter().any(|dir| path.starts_with(root().join(dir)));
    let of = |text: &str| text.split(&opening).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    let found = sources(".rs").into_iter().filter(|(path, _)| product(path));
    found.flat_map(|(_, text)| -> Vec<String> { of(&text) }).collect()
}

#[test]
fn somebody_dies_at_every_named_place() {
    let kinds = nemesis::kinds().filter(|kind| kind.class == Class::Points);
    let tried: BTreeSet<_> = kinds.map(|kind| kind.name.to_owned()).collect();
    assert!(tried.len() >= 30, "{} places", tried.len());
    assert_eq!(named("failpoint", ""), tried, "left: places in the sources; right: what nemesis/points.rs tries");
}

#[test]
fn every_deliberate_bug_has_a_test_that_is_to_catch_it_and_is_told_of() {
    let list = fs::read_to_string(root().join("cluster-tests/mutants.txt")).unwrap();
    let page = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let mut listed = BTreeSet::new();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<_> = line.split(" | ").collect();
        let [bug, layer, tests, filter, what] = columns[..] else { panic!("five columns: {line}") };
        assert!(listed.insert(bug.to_owned()), "{bug} is listed twice");
        let row = format!("| {what} | {layer} | `{bug}` | `{tests}`: `{filter}` |");
        assert!(page.contains(&row), "docs/reliability.md lacks\n{row}");
    }
    assert!(listed.len() >= 25, "{} deliberate bugs", listed.len());
    assert_eq!(named("armed", "bug::"), listed, "left: bugs in the sources; right: cluster-tests/mutants.txt");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for (path, text) in sources(".md") {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let outside = target.is_empty() || target.contains("://");
            if !outside && !path.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
