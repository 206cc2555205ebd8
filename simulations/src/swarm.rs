//! Scenarios that nobody wrote: one for each seed, as people could have written it, and smaller ones that still fail.
//!
//! Spec: `protocol/spec/simulation.md`, "Swarm".

use kith_object::key::{Rng, derive};

use crate::plan::Harm;
use crate::scenario::{self, Report, Scenario};
use crate::schedule::choose;

/// A scenario in parts, which can be left out one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What it cannot do without.
    head: String,
    /// What people do, and what goes wrong.
    parts: Vec<String>,
}

fn some<'a>(from: &[&'a str], rng: &mut Rng) -> &'a str {
    choose(from, rng).unwrap_or_default()
}

fn whether(of: u64, rng: &mut Rng) -> bool {
    rng.below(of) == 0
}

/// One member means harm, and is removed half of the time, or another is.
fn harms(minutes: u64, members: &[String], rng: &mut Rng) -> Vec<String> {
    let names: Vec<&str> = members.iter().map(String::as_str).collect();
    let hostile = some(&names, rng);
    let kinds = Harm::ALL.map(|(name, _)| name);
    let mut parts = Vec::new();
    for _ in 0..=rng.below(3) {
        let count = 1 + rng.below(6);
        let what = some(&kinds, rng);
        parts.push(format!(
            "[[harm]]\nwhat = '{what}'\ndevices = ['{hostile}']\ncount = {count}\n"
        ));
    }
    if whether(2, rng) {
        let at = rng.below(minutes * 60);
        parts.push(format!(
            "[[fault]]\nwhat = 'removed'\ndevices = ['{hostile}']\nat = '{at}s'\n"
        ));
        let left = minutes * 60 - at;
        parts.push(format!(
            "[[harm]]\nwhat = 'intrude'\ndevices = ['{hostile}']\nbetween = ['{at}s', '{}s']\ncount = 4\n",
            at + left
        ));
    }
    parts
}

impl Draft {
    /// That of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::from_seed(derive("kith swarm 1", &seed.to_le_bytes()));
        let rng = &mut rng;
        let minutes = match rng.below(3) {
            0 => 1 + rng.below(9),
            1 => 10 + rng.below(110),
            _ => 120 + rng.below(600),
        };
        let mut head = format!(
            "about = 'seed {seed} of the swarm'\nduration = '{minutes}m'\nsettle = '1h'\nread = '6h'\n"
        );
        let sites = ["here", "there", "far"];
        let count = 1 + usize::try_from(rng.below(3)).unwrap_or(0);
        let sites = sites.get(..count).unwrap_or_default();
        if whether(2, rng) {
            head += &format!(
                "[between]\nlatency = '{}ms..{}ms'\nloss = '0.{}%'\n",
                rng.below(20),
                20 + rng.below(300),
                rng.below(100)
            );
        }
        for site in sites {
            head += &format!("[[site]]\nname = '{site}'\n");
            if whether(2, rng) {
                let (up, down) = (500 + rng.below(20_000), 1000 + rng.below(100_000));
                head += &format!("up = '{up}kbit/s'\ndown = '{down}kbit/s'\n");
            }
        }
        let devices = 2 + rng.below(6);
        let mut members = Vec::new();
        for device in 0..devices {
            head += &format!(
                "[[device]]\nname = 'd{device}'\nsite = '{}'\n",
                some(sites, rng)
            );
            if device == 0 || whether(3, rng) {
                head += "admin = true\n";
            } else {
                members.push(format!("d{device}"));
            }
            match rng.below(6) {
                0 => head += &format!("skew = '{}s'\n", rng.below(900)),
                1 => head += &format!("skew = '-{}s'\n", rng.below(90_000)),
                2 => head += &format!("drift = {}\n", rng.below(200)),
                _ => {}
            }
            if device > 0 && minutes > 300 && whether(4, rng) {
                head += "online = '01:00-04:00'\n";
            }
        }
        let at = |rng: &mut Rng| rng.below(minutes * 60);
        let mut parts = Vec::new();
        for _ in 0..=rng.below(3) {
            let every = minutes * 60_000 / (10 + rng.below(60));
            parts.push(match rng.below(6) {
                4 | 5 => format!("[[work]]\nwhat = 'reads'\nevery = '{}ms'\n", 1 + every / 2),
                0 => format!("[[work]]\nwhat = 'lifelog'\nevery = '{every}ms'\n"),
                1 => format!(
                    "[[work]]\nwhat = 'source'\nat = '{}s'\nfiles = {}\nsize = '0B..9KB'\n",
                    at(rng),
                    5 + rng.below(40)
                ),
                _ => format!(
                    "[[work]]\nwhat = 'edits'\nevery = '{every}ms'\nsize = '0B..{}KB'\n",
                    some(&["1", "8", "90", "600"], rng)
                ),
            });
        }
        for _ in 0..rng.below(7) {
            let lasts = format!(
                "lasts = '{}ms..{}s'\n",
                rng.below(900),
                1 + rng.below(minutes * 15)
            );
            let count = format!("count = {}\n", 1 + rng.below(5));
            parts.push(match rng.below(7) {
                5 | 6 => format!(
                    "[[fault]]\nwhat = 'unlucky'\nchance = '{}%'\n{lasts}",
                    1 + rng.below(30)
                ),
                0 => format!(
                    "[[fault]]\nwhat = 'partition'\nat = '{}s'\n{lasts}",
                    at(rng)
                ),
                1 | 2 => format!("[[fault]]\nwhat = 'crash'\n{count}{lasts}"),
                3 => format!("[[fault]]\nwhat = 'away'\n{count}{lasts}"),
                _ => format!(
                    "[[fault]]\nwhat = 'clock'\njump = '{}{}s'\nat = '{}s'\n",
                    some(&["", "-"], rng),
                    rng.below(100_000),
                    at(rng)
                ),
            });
        }
        // What came later to the swarm comes last: earlier seeds stay what they were.
        if whether(2, rng) && devices >= 3 && !members.is_empty() {
            parts.extend(harms(minutes, &members, rng));
        }
        if whether(6, rng) {
            let count = 1 + rng.below(4);
            parts.push(format!("[[fault]]\nwhat = 'rot'\ncount = {count}\n"));
        }
        if whether(3, rng) {
            let loss = 1 + rng.below(25);
            head = head.replacen('\n', &format!("\ngossip-loss = '{loss}%'\n"), 1);
        }
        if whether(5, rng) {
            let age = 1 + rng.below(minutes * 30);
            let count = 1 + rng.below(2);
            parts.push(format!(
                "[[fault]]\nwhat = 'restored'\nage = '1s..{age}s'\ncount = {count}\n"
            ));
        }
        if whether(4, rng) {
            let count = 1 + rng.below(5);
            parts.push(format!(
                "[[fault]]\nwhat = 'paused'\nlasts = '100ms..3m'\ncount = {count}\n"
            ));
        }
        if whether(4, rng) {
            let count = 1 + rng.below(6);
            parts.push(format!("[[fault]]\nwhat = 'moved'\ncount = {count}\n"));
        }
        if whether(4, rng) {
            let (loss, count) = (1 + rng.below(40), 1 + rng.below(5));
            parts.push(format!(
                "[[fault]]\nwhat = 'storm'\nloss = '{loss}%'\nlasts = '1s..10m'\ncount = {count}\n"
            ));
        }
        let mut draft = Self { head, parts };
        draft.worse_ways(minutes, sites, rng);
        draft.worse_devices(rng);
        draft.keeping(devices, rng);
        draft
    }

    /// Devices that give room for packs, so that others fetch copies, prove them, and give theirs up.
    fn keeping(&mut self, devices: u64, rng: &mut Rng) {
        if !whether(4, rng) {
            return;
        }
        for device in 0..devices {
            if whether(5, rng) {
                continue;
            }
            let name = format!("[[device]]\nname = 'd{device}'\n");
            let gives = format!("{name}gives = '{}MB'\n", 1 + rng.below(400));
            self.head = self.head.replacen(&name, &gives, 1);
        }
    }

    /// Lines that are others at other hours, routers, bursts, one-way faults.
    fn worse_ways(&mut self, minutes: u64, sites: &[&str], rng: &mut Rng) {
        if whether(4, rng) {
            let at = rng.below(minutes * 60);
            let lasts = 1 + rng.below(minutes * 15);
            self.parts.push(format!(
                "[[fault]]\nwhat = 'partition'\none-way = true\nat = '{at}s'\nlasts = '1s..{lasts}s'\n"
            ));
        }
        let usual = !self.head.contains("[between]");
        if usual && whether(3, rng) {
            let every = 2 + rng.below(300);
            let (lasts, loss) = (1 + rng.below(every), 1 + rng.below(40));
            let mtu = some(&["576B", "1280B", "9000B"], rng);
            let between = format!(
                "[between]\nlatency = '5ms..60ms'\nreordered = '{}%'\nduplicated = '0.{}%'\nmtu = '{mtu}'\n\
                 bursts = {{ loss = '{loss}%', every = '{every}s', lasts = '10ms..{lasts}s' }}\n",
                rng.below(6),
                rng.below(10)
            );
            // Before the first site.
            self.head = self
                .head
                .replacen("[[site]]", &format!("{between}[[site]]"), 1);
        }
        // The first device is where everybody reaches it, and relays.
        let first = "[[device]]\nname = 'd0'\nsite = '";
        let open = self
            .head
            .split_once(first)
            .and_then(|(_, rest)| rest.split('\'').next());
        let open = open.unwrap_or_default().to_owned();
        for site in sites.iter().filter(|site| **site != open) {
            if whether(4, rng) {
                let nat = some(&["cone", "symmetric"], rng);
                let name = format!("[[site]]\nname = '{site}'\n");
                let with = format!("{name}nat = '{nat}'\n");
                self.head = self.head.replacen(&name, &with, 1);
            }
        }
        if sites.len() > 1 && minutes > 60 && whether(4, rng) {
            let site = some(sites, rng);
            let from = rng.below(2);
            let line = match rng.below(3) {
                0 => "shut = true",
                1 => "up = '300kbit/s'\ndown = '1Mbit/s'\nmetered = true",
                _ => "latency = '20ms..200ms'\nloss = '2%'",
            };
            self.parts.push(format!(
                "[[line]]\nsite = '{site}'\nhours = '0{from}:10-0{}:00'\n{line}\n",
                from + 1 + rng.below(5)
            ));
        }
    }

    /// Full disks, disks that fail, slow ones.
    fn worse_devices(&mut self, rng: &mut Rng) {
        if whether(4, rng) {
            let count = 1 + rng.below(3);
            let room = some(&["0B", "10KB", "2MB"], rng);
            self.parts.push(format!(
                "[[fault]]\nwhat = 'full'\nroom = '{room}'\nlasts = '1s..20m'\ncount = {count}\n"
            ));
        }
        if whether(4, rng) {
            let count = 1 + rng.below(3);
            self.parts.push(format!(
                "[[fault]]\nwhat = 'unwritable'\nlasts = '1s..10m'\ncount = {count}\n"
            ));
        }
        if whether(4, rng) {
            let count = 1 + rng.below(3);
            let (cpu, disk) = (rng.below(40), 1 + rng.below(300));
            self.parts.push(format!(
                "[[fault]]\nwhat = 'slow'\ncpu = '{cpu}ms'\ndisk = '{disk}ms'\nlasts = '1s..10m'\ncount = {count}\n"
            ));
        }
        if whether(8, rng) {
            let count = 1 + rng.below(3);
            self.parts
                .push(format!("[[fault]]\nwhat = 'sector'\ncount = {count}\n"));
        }
        if whether(8, rng) {
            let device = "[[device]]\nname = 'd1'\n";
            let slow = format!(
                "{device}cpu = '{}ms'\nreads = '1ms..{}ms'\nsyncs = '5ms..{}ms'\n",
                rng.below(9),
                1 + rng.below(60),
                5 + rng.below(200)
            );
            self.head = self.head.replacen(device, &slow, 1);
        }
    }

    /// As a file.
    pub fn text(&self) -> String {
        self.head.clone() + &self.parts.concat()
    }

    /// As it is run.
    ///
    /// # Panics
    /// If the text is no scenario, which it always is.
    pub fn scenario(&self) -> Scenario {
        scenario::of_text("swarm", &self.text()).expect("drafts are scenarios")
    }

    /// Leaves out all without which it still fails; each try is one more run.
    #[must_use]
    pub fn shrunk(mut self, fails: &dyn Fn(&Self) -> bool) -> Self {
        let mut at = 0;
        while at < self.parts.len() {
            let mut less = self.clone();
            less.parts.remove(at);
            if fails(&less) {
                self = less;
            } else {
                at += 1;
            }
        }
        self
    }
}

/// Runs the scenario of a seed.
pub fn run(seed: u64, keep_trace: bool) -> Report {
    Draft::new(seed).scenario().run(seed, keep_trace)
}

/// Seeds of the swarm that once failed; a line each, `#` begins a remark.
pub fn known() -> Vec<u64> {
    let lines = include_str!("../seeds.txt").lines();
    let seeds = lines.filter_map(|line| line.split('#').next()?.trim().parse().ok());
    seeds.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_draft_is_a_scenario_and_each_another() {
        let texts: Vec<String> = (0..2000)
            .map(|seed| {
                let draft = Draft::new(seed);
                draft.scenario();
                draft.text()
            })
            .collect();
        let all: std::collections::BTreeSet<&String> = texts.iter().collect();
        assert_eq!(all.len(), texts.len());
    }

    #[test]
    fn seeds_that_once_failed_and_some_others_end_in_agreement() {
        for seed in known().into_iter().chain(0..40) {
            let report = run(seed, false);
            assert!(
                report.failures.is_empty(),
                "{:?}\nreplay: kith sim swarm --seed {seed} --runs 1",
                report.failures
            );
        }
    }

    #[test]
    fn fifty_seeds_give_the_same_trace_twice_and_each_another() {
        let mut hashes = std::collections::BTreeSet::new();
        for seed in 5000.. {
            let one = run(seed, true);
            // Runs of hardly any events prove nothing.
            if one.events < 1000 {
                continue;
            }
            if hashes.len() == 50 {
                break;
            }
            let same = run(seed, true);
            assert!(one.trace_text == same.trace_text, "seed {seed}");
            assert_eq!(one.trace_hash, same.trace_hash);
            assert!(hashes.insert(one.trace_hash), "seed {seed}");
        }
    }

    #[test]
    fn what_has_nothing_to_do_with_the_failure_is_left_out() {
        let draft = Draft {
            head: String::new(),
            parts: "abcdefg".chars().map(String::from).collect(),
        };
        let fails = |draft: &Draft| draft.text().contains('c') && draft.text().contains('f');
        assert_eq!(draft.shrunk(&fails).text(), "cf");
    }

    /// The check has to be one that can fail: with anti-entropy off, it does.
    #[test]
    fn swarm_finds_that_something_is_missing() {
        let failed = (0..40).filter(|seed| {
            let scenario = Draft::new(*seed).scenario().without_anti_entropy();
            !scenario.run(*seed, false).failures.is_empty()
        });
        assert!(failed.count() > 10);
    }
}
