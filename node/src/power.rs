//! What this machine takes from the socket, as far as its processor tells.
//!
//! Linux shows the counters of RAPL (running average power limit) under `/sys/class/powercap`, in most systems to the
//! super-user alone. They cover the processor and often its memory, not graphics cards, fans or power supply: what is
//! measured is a lower bound.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where Linux shows the counters.
const POWERCAP: &str = "/sys/class/powercap";
/// Time between two readings.
const MEASURED: Duration = Duration::from_secs(1);
/// Counters looked at; machines have one or two.
const MAX_DOMAINS: usize = 64;

/// A counter that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Domain {
    path: PathBuf,
    /// In microjoule.
    energy: u64,
    /// It starts again from 0 after this one.
    most: u64,
}

/// What the machine takes now, in milliwatts, measured over a second; none where it cannot be read.
pub async fn measured() -> Option<u64> {
    let root = Path::new(POWERCAP);
    let (before, start) = (domains(root), Instant::now());
    if before.is_empty() {
        return None;
    }
    tokio::time::sleep(MEASURED).await;
    milliwatts(&before, &domains(root), start.elapsed())
}

/// The counters of whole packages: those of their parts are in these.
fn domains(root: &Path) -> Vec<Domain> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let packages = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("intel-rapl:") && name.matches(':').count() == 1)
    });
    let mut found: Vec<Domain> = packages.take(MAX_DOMAINS).filter_map(|entry| domain(&entry.path())).collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn domain(path: &Path) -> Option<Domain> {
    let number = |name: &str| std::fs::read_to_string(path.join(name)).ok()?.trim().parse().ok();
    // The platform's own counter, where there is one, would count the packages again.
    if std::fs::read_to_string(path.join("name")).ok()?.trim() == "psys" {
        return None;
    }
    Some(Domain { path: path.to_owned(), energy: number("energy_uj")?, most: number("max_energy_range_uj")? })
}

fn milliwatts(before: &[Domain], after: &[Domain], elapsed: Duration) -> Option<u64> {
    let mut microjoule = 0_u64;
    for (old, new) in before.iter().zip(after) {
        if old.path != new.path {
            return None;
        }
        let used = match new.energy.checked_sub(old.energy) {
            Some(used) => used,
            None => old.most.checked_sub(old.energy)?.checked_add(new.energy)?,
        };
        microjoule = microjoule.checked_add(used)?;
    }
    let millis = u64::try_from(elapsed.as_millis()).ok()?;
    // Microjoule a millisecond are milliwatts.
    microjoule.checked_div(millis).filter(|power| before.len() == after.len() && *power > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, kind: &str, energy: u64) {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for (file, text) in [("name", kind.to_owned()), ("energy_uj", energy.to_string())] {
            std::fs::write(dir.join(file), format!("{text}\n")).unwrap();
        }
        std::fs::write(dir.join("max_energy_range_uj"), "1000000\n").unwrap();
    }

    #[test]
    fn packages_are_added_up_and_counters_begin_anew() {
        let root = tempfile::tempdir().unwrap();
        assert!(domains(root.path()).is_empty());
        write(root.path(), "intel-rapl:0", "package-0", 100_000);
        write(root.path(), "intel-rapl:1", "package-1", 950_000);
        write(root.path(), "intel-rapl:0:0", "core", 7);
        write(root.path(), "intel-rapl:2", "psys", 7);
        let before = domains(root.path());
        assert_eq!(before.len(), 2);
        write(root.path(), "intel-rapl:0", "package-0", 300_000);
        write(root.path(), "intel-rapl:1", "package-1", 50_000);
        // 0.2 J and 0.1 J in 10 ms.
        assert_eq!(milliwatts(&before, &domains(root.path()), Duration::from_millis(10)), Some(30_000));
        assert_eq!(milliwatts(&before, &before, Duration::from_millis(10)), None, "a counter that stands still");
        assert_eq!(milliwatts(&before, &before[..1], Duration::from_millis(10)), None);
    }
}
