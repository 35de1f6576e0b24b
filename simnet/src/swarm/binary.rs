//! Which `consortium-node` the nodes run: the one named, the one beside simnet, or, when simnet itself was started by
//! cargo, the one that cargo builds now from the same source with the same profile.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::steps::Steps;

const PACKAGE: &str = "consortium-node";

/// Variables that `cargo run` sets for the package it runs: a build that inherited them could differ from one that
/// did not, and do its work twice.
const RUN_ONLY: [&str; 5] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];

/// Finds the node's binary, building it where cargo is at hand.
///
/// # Errors
/// When there is none, or it does not build.
pub(crate) async fn find(named: Option<&Path>, steps: &Steps) -> Result<PathBuf> {
    if let Some(path) = named {
        return path.canonicalize().with_context(|| format!("no node binary at {}", path.display()));
    }
    let simnet = std::env::current_exe().context("cannot tell where simnet itself is")?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        return build(Path::new(&cargo), &simnet, steps).await;
    }
    let beside = simnet.with_file_name(PACKAGE);
    if beside.is_file() {
        return Ok(beside);
    }
    bail!(
        "{} does not exist: build it with `cargo build -p {PACKAGE}`, or name one with --node-binary",
        beside.display()
    )
}

async fn build(cargo: &Path, simnet: &Path, steps: &Steps) -> Result<PathBuf> {
    steps.say("building consortium-node");
    let mut command = Command::new(cargo);
    command
        // With simnet among the packages, so that their common dependencies get the features they have already.
        .args(["build", "-p", env!("CARGO_PKG_NAME"), "-p", PACKAGE, "--bin", PACKAGE])
        .arg("--message-format=json-render-diagnostics")
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .args(layout_arguments(simnet))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if RUN_ONLY.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    let mut child = command.spawn().with_context(|| format!("cannot run {}", cargo.display()))?;
    let stdout = child.stdout.take().context("cargo has no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    let mut binary = None;
    while let Some(line) = lines.next_line().await? {
        binary = executable(&line).or(binary);
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("consortium-node does not build ({status})");
    }
    binary.context("cargo built consortium-node and did not say where")
}

/// The binary that one of cargo's messages tells of.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    (message["reason"] == "compiler-artifact" && message["target"]["name"] == PACKAGE)
        .then(|| message["executable"].as_str().map(PathBuf::from))
        .flatten()
}

/// Arguments that make cargo use the target directory, triple and profile which simnet was built with.
fn layout_arguments(simnet: &Path) -> Vec<String> {
    let mut arguments = Vec::new();
    let Some(mut profile) = simnet.parent() else {
        return arguments;
    };
    if profile.ends_with("deps") {
        profile = profile.parent().unwrap_or(profile);
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    match name(profile).as_deref() {
        Some("debug") | None => {}
        Some("release") => arguments.push("--release".to_owned()),
        Some(other) => arguments.extend(["--profile".to_owned(), other.to_owned()]),
    }
    // Cargo keeps what it knows of rustc at the top of a target directory.
    let is_target = |dir: &Path| dir.join(".rustc_info.json").is_file();
    let mut above = profile.ancestors().skip(1);
    match (above.next(), above.next()) {
        (Some(target), _) if is_target(target) => {
            arguments.extend(["--target-dir".to_owned(), target.display().to_string()]);
        }
        (Some(triple), Some(target)) if is_target(target) => {
            arguments.extend(["--target-dir".to_owned(), target.display().to_string()]);
            arguments.extend(name(triple).map(|triple| ["--target".to_owned(), triple]).into_iter().flatten());
        }
        _ => {}
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_follows_simnets_own() {
        let temp = tempfile::tempdir().unwrap();
        let target = temp.path().display().to_string();
        let arguments = |path: &str| layout_arguments(&temp.path().join(path)).join(" ");
        assert_eq!(arguments("release/simnet"), "--release");
        std::fs::write(temp.path().join(".rustc_info.json"), "{}").unwrap();
        assert_eq!(arguments("debug/simnet"), format!("--target-dir {target}"));
        assert_eq!(arguments("debug/deps/up-0123"), format!("--target-dir {target}"));
        assert_eq!(arguments("dist/simnet"), format!("--profile dist --target-dir {target}"));
        assert_eq!(
            arguments("x86_64-unknown-linux-musl/release/simnet"),
            format!("--release --target-dir {target} --target x86_64-unknown-linux-musl")
        );
    }

    #[test]
    fn cargo_says_where_the_binary_is() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"name":"consortium-node"},"executable":"/t/debug/consortium-node"}"#;
        assert_eq!(executable(artifact), Some("/t/debug/consortium-node".into()));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"consortium-node"},"executable":null}"#;
        assert_eq!(executable(library), None);
        assert_eq!(executable("Compiling"), None);
    }
}
