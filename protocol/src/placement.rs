//! Which devices should hold a pack, or a shard of it: weighted rendezvous, every site before any twice.
//!
//! Spec: `protocol/spec/placement.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kith_object::id::{DeviceId, PackId};
use kith_object::key::derive;

/// Most whole copies.
pub const REPLICAS_MAX: u8 = 16;
/// Schemes of erasure coding, smallest first: shards that restore a pack, and shards besides.
pub const SCHEMES: [(u8, u8); 5] = [(2, 1), (4, 2), (6, 3), (8, 4), (10, 6)];
/// Less capacity counts as that.
const CAPACITY_MIN_MIB: u64 = 1;
const MIB: u64 = 1 << 20;
/// Candidates that are scored together.
const TOGETHER: usize = 4;
/// Binary digits of a logarithm behind its point.
const DIGITS: u32 = 24;

/// How often, or in which pieces, a pack is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Redundancy {
    /// So many whole copies.
    Replicas(u8),
    /// So many shards, any of which restore the pack, and so many besides.
    Erasure(u8, u8),
}

impl Redundancy {
    /// What suits so many holders: any two of them may be lost, one where they are three or two.
    pub fn auto(holders: usize) -> Self {
        match holders {
            0 | 1 => Self::Replicas(1),
            2 => Self::Replicas(2),
            3 => Self::Erasure(2, 1),
            4 | 5 => Self::Replicas(3),
            6..=8 => Self::Erasure(4, 2),
            9..=11 => Self::Erasure(6, 3),
            12..=15 => Self::Erasure(8, 4),
            _ => Self::Erasure(10, 6),
        }
    }

    /// Devices that hold a piece of each pack.
    pub fn pieces(self) -> usize {
        match self {
            Self::Replicas(copies) => usize::from(copies),
            Self::Erasure(needed, spare) => usize::from(needed) + usize::from(spare),
        }
    }

    /// Pieces that may be lost, and the rest still is the whole.
    pub fn spare(self) -> usize {
        match self {
            Self::Replicas(copies) => usize::from(copies).saturating_sub(1),
            Self::Erasure(_, spare) => usize::from(spare),
        }
    }

    /// Whether there is such a one.
    pub fn is_known(self) -> bool {
        match self {
            Self::Replicas(copies) => (1..=REPLICAS_MAX).contains(&copies),
            Self::Erasure(needed, spare) => SCHEMES.contains(&(needed, spare)),
        }
    }
}

impl fmt::Display for Redundancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replicas(1) => write!(f, "1 copy"),
            Self::Replicas(copies) => write!(f, "{copies} copies"),
            Self::Erasure(needed, spare) => write!(f, "{needed}+{spare}"),
        }
    }
}

/// Where a space's packs are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// How often; by the number of holders if absent.
    pub redundancy: Option<Redundancy>,
    /// The sites at which packs may be; all if absent.
    pub sites: Option<BTreeSet<String>>,
    /// Sites over which they have to be spread.
    pub min_sites: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            redundancy: None,
            sites: None,
            min_sites: 1,
        }
    }
}

/// A device that may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub device: DeviceId,
    /// Where it is, if that was said.
    pub site: String,
    /// Bytes that it was given for packs; none, and it holds nothing.
    pub capacity: u64,
}

/// Why a policy cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    /// There is no such redundancy.
    #[error("there is no {0}: it is 1 to {REPLICAS_MAX} copies, or 2+1, 4+2, 6+3, 8+4, 10+6")]
    Unknown(Redundancy),
    /// Nobody may hold.
    #[error("no device may hold packs where this policy wants them")]
    NoHolder,
    /// Fewer than the pieces.
    #[error("{holders} holders cannot keep {wanted}; best is {best}")]
    Holders {
        /// How many there are.
        holders: usize,
        /// What was asked for.
        wanted: Redundancy,
        /// What they can keep.
        best: Redundancy,
    },
    /// More sites than pieces.
    #[error("{pieces} pieces cannot be at {sites} sites")]
    Pieces {
        /// Of each pack.
        pieces: usize,
        /// How many were asked for.
        sites: usize,
    },
    /// Fewer than the sites.
    #[error("holders are at {sites} sites, and {wanted} are wanted")]
    Sites {
        /// At how many there are holders.
        sites: usize,
        /// How many were asked for.
        wanted: usize,
    },
}

/// What of its holders a score needs.
#[derive(Debug, Clone)]
struct Candidate {
    device: DeviceId,
    site: usize,
    seed: u64,
    /// See the spec, "Score".
    rate: u64,
}

/// Holders and a policy that they can keep: places any pack.
#[derive(Debug, Clone)]
pub struct Placement {
    candidates: Vec<Candidate>,
    sites: usize,
    redundancy: Redundancy,
}

impl Placement {
    /// Holders in any order; one that is named twice counts once.
    ///
    /// # Errors
    /// [`Unmet`], if they cannot keep the policy.
    pub fn new(holders: &[Holder], policy: &Policy) -> Result<Self, Unmet> {
        let placement = Self::as_far_as_possible(holders, policy)?;
        let (wanted, count) = (placement.redundancy, placement.candidates.len());
        if !wanted.is_known() {
            return Err(Unmet::Unknown(wanted));
        }
        if wanted.pieces() > count {
            return Err(Unmet::Holders {
                holders: count,
                wanted,
                best: Redundancy::auto(count),
            });
        }
        if policy.min_sites > wanted.pieces() {
            return Err(Unmet::Pieces {
                pieces: wanted.pieces(),
                sites: policy.min_sites,
            });
        }
        if placement.sites < policy.min_sites {
            return Err(Unmet::Sites {
                sites: placement.sites,
                wanted: policy.min_sites,
            });
        }
        Ok(placement)
    }

    /// The same where a policy cannot be kept for now: as many pieces as there are holders.
    ///
    /// # Errors
    /// [`Unmet::NoHolder`].
    pub fn as_far_as_possible(holders: &[Holder], policy: &Policy) -> Result<Self, Unmet> {
        let eligible = |holder: &&Holder| {
            let sites = policy.sites.as_ref();
            holder.capacity > 0 && sites.is_none_or(|sites| sites.contains(&holder.site))
        };
        let by_device: BTreeMap<DeviceId, &Holder> = holders
            .iter()
            .filter(eligible)
            .map(|holder| (holder.device, holder))
            .collect();
        if by_device.is_empty() {
            return Err(Unmet::NoHolder);
        }
        let labels: BTreeSet<&str> = by_device.values().map(|of| of.site.as_str()).collect();
        let places: BTreeMap<&str, usize> = labels.into_iter().zip(0..).collect();
        let candidates: Vec<Candidate> = by_device
            .iter()
            .map(|(device, holder)| Candidate {
                device: *device,
                site: places.get(holder.site.as_str()).copied().unwrap_or(0),
                seed: seed(device),
                rate: u64::MAX / (holder.capacity / MIB).max(CAPACITY_MIN_MIB),
            })
            .collect();
        let count = candidates.len();
        Ok(Self {
            candidates,
            sites: places.len(),
            redundancy: policy.redundancy.unwrap_or_else(|| Redundancy::auto(count)),
        })
    }

    /// How often, or in which pieces.
    pub fn redundancy(&self) -> Redundancy {
        self.redundancy
    }

    /// Devices that may hold.
    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// Never so: a placement has holders.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// Who should hold a pack or a shard of it, in order.
    pub fn holders(&self, pack: &PackId) -> Vec<DeviceId> {
        self.first(pack, self.redundancy.pieces())
    }

    /// The first so many in the order of a pack; fewer where there are fewer.
    fn first(&self, pack: &PackId, pieces: usize) -> Vec<DeviceId> {
        let mut scored: Vec<(u64, usize)> = Vec::with_capacity(self.candidates.len());
        for few in self.candidates.chunks(TOGETHER) {
            scored.extend(
                scores(few, pack)
                    .into_iter()
                    .zip(scored.len()..)
                    .take(few.len()),
            );
        }
        // Candidates are in the order of their names, which settles equal scores.
        scored.sort_unstable();
        let mut rounds = vec![0_u32; self.sites];
        let mut order: Vec<(u32, usize)> = scored
            .into_iter()
            .filter_map(|(_, place)| {
                let candidate = self.candidates.get(place)?;
                let round = rounds.get_mut(candidate.site)?;
                *round += 1;
                Some((*round, place))
            })
            .collect();
        // Stable: within a round by score.
        order.sort_by_key(|(round, _)| *round);
        order
            .into_iter()
            .take(pieces)
            .filter_map(|(_, place)| Some(self.candidates.get(place)?.device))
            .collect()
    }

    /// Whether a device should hold a pack or a shard of it.
    pub fn is_holder(&self, pack: &PackId, device: &DeviceId) -> bool {
        self.holders(pack).contains(device)
    }

    /// Which device should hold which shard of a pack, after those that should when it was coded: who still should keeps its shard, and who has come to hold one
    /// since keeps that. Whatever the policy wants now, there are as many shards as there were; nobody where there are fewer holders.
    pub fn shards(
        &self,
        pack: &PackId,
        coded: &[DeviceId],
        holds: impl Fn(usize, &DeviceId) -> bool,
    ) -> Vec<Option<DeviceId>> {
        let now = self.first(pack, coded.len());
        let mut shards: Vec<Option<DeviceId>> = coded
            .iter()
            .map(|device| now.contains(device).then_some(*device))
            .collect();
        let mut newcomers: Vec<DeviceId> = now
            .into_iter()
            .filter(|device| !coded.contains(device))
            .collect();
        newcomers.retain(|device| {
            let free = shards.iter_mut().enumerate();
            let mut held = free.filter(|(at, shard)| shard.is_none() && holds(*at, device));
            let place = held.next().map(|(_, shard)| shard);
            place.map(|shard| *shard = Some(*device)).is_none()
        });
        let free = shards.iter_mut().filter(|shard| shard.is_none());
        for (shard, device) in free.zip(newcomers) {
            *shard = Some(device);
        }
        shards
    }
}

/// The scores of some candidates, at most [`TOGETHER`].
fn scores(few: &[Candidate], pack: &PackId) -> [u64; TOGETHER] {
    let name = u64::from_le_bytes(pack.0.first_chunk().copied().unwrap_or_default());
    let mut chances = [0; TOGETHER];
    for (chance, candidate) in chances.iter_mut().zip(few) {
        *chance = mix(name ^ candidate.seed);
    }
    let mut scores = distances(chances);
    for (score, candidate) in scores.iter_mut().zip(few) {
        let weighted = (u128::from(*score) * u128::from(candidate.rate)) >> 30;
        *score = u64::try_from(weighted).unwrap_or(u64::MAX);
    }
    scores
}

fn seed(device: &DeviceId) -> u64 {
    let derived = derive("kith placement 1", &device.0);
    u64::from_le_bytes(derived.first_chunk().copied().unwrap_or_default())
}

/// The finalizer of SplitMix64: each bit of the result depends on each of the number.
fn mix(number: u64) -> u64 {
    let mut x = number;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Minus the binary logarithms of chances, 2^64 being one, in units of 2^-24: at least 1. Each digit waits for the one before it, so several numbers are as quick as one.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a square of less than 2^128, shifted by 63 at least, of which the bit at 64 was looked at"
)]
fn distances(chances: [u64; TOGETHER]) -> [u64; TOGETHER] {
    let zeros = chances.map(|chance| (chance | 1).leading_zeros());
    let mut mantissas = chances;
    for (mantissa, zeros) in mantissas.iter_mut().zip(zeros) {
        // In [1, 2), as a fraction of 2^63.
        *mantissa = (*mantissa | 1) << zeros;
    }
    let mut logs = [0_u64; TOGETHER];
    for _ in 0..DIGITS {
        for (mantissa, log) in mantissas.iter_mut().zip(&mut logs) {
            let square = u128::from(*mantissa) * u128::from(*mantissa);
            let high = (square >> 64) as u64;
            let bit = high >> 63;
            *log = (*log << 1) | bit;
            // Without a branch: which way it goes is chance.
            *mantissa = (square >> (63 + bit)) as u64;
        }
    }
    let mut distances = logs;
    for (distance, zeros) in distances.iter_mut().zip(zeros) {
        *distance = (((u64::from(zeros) + 1) << DIGITS) - *distance).max(1);
    }
    distances
}

/// The same of one, as the spec has it.
#[cfg(test)]
fn distance(chance: u64) -> u64 {
    let chance = chance | 1;
    let zeros = chance.leading_zeros();
    // In [1, 2), as a fraction of 2^63.
    let mut mantissa = chance << zeros;
    let mut log = 0_u64;
    for _ in 0..DIGITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let high = u64::try_from(square >> 64).unwrap_or(u64::MAX);
        log <<= 1;
        if high >> 63 == 1 {
            log |= 1;
            mantissa = high;
        } else {
            mantissa = u64::try_from((square >> 63) & u128::from(u64::MAX)).unwrap_or(u64::MAX);
        }
    }
    (((u64::from(zeros) + 1) << DIGITS) - log).max(1)
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use serde_json::{Value, json};

    use super::*;

    fn device(n: u16) -> DeviceId {
        DeviceId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn packs(count: u32) -> impl Iterator<Item = PackId> {
        (0..count).map(|n| PackId(derive("test packs", &n.to_le_bytes())))
    }

    fn holder(n: u16, site: &str, gib: u64) -> Holder {
        Holder {
            device: device(n),
            site: site.to_owned(),
            capacity: gib << 30,
        }
    }

    fn policy(redundancy: Redundancy) -> Policy {
        Policy {
            redundancy: Some(redundancy),
            ..Policy::default()
        }
    }

    #[test]
    fn distances_are_logarithms() {
        for chance in [
            1_u64,
            3,
            1 << 20,
            u64::MAX / 3,
            1 << 63,
            u64::MAX - 1,
            u64::MAX,
        ] {
            let real = 64.0 - ((chance | 1) as f64).log2();
            let ours = distance(chance) as f64 / f64::from(1_u32 << DIGITS);
            assert!((real - ours).abs() < 2e-7, "{chance}: {real} {ours}");
        }
        assert_eq!(distance(u64::MAX), 1);
        for n in 0..5000 {
            let chances = [n, mix(n), mix(n) >> (n % 64), u64::MAX - n];
            assert_eq!(distances(chances), chances.map(distance));
        }
    }

    #[test]
    fn shares_are_those_of_the_capacities() {
        let holders: Vec<Holder> = (1..=8)
            .map(|n| holder(n, "home", u64::from(n) * 100))
            .collect();
        let placement = Placement::new(&holders, &policy(Redundancy::Replicas(1))).unwrap();
        let mut counts: BTreeMap<DeviceId, u32> = BTreeMap::new();
        for pack in packs(36_000) {
            *counts.entry(placement.holders(&pack)[0]).or_default() += 1;
        }
        for n in 1..=8_u16 {
            let (got, ideal) = (f64::from(counts[&device(n)]), f64::from(n) * 1000.0);
            assert!((got / ideal - 1.0).abs() < 0.08, "{n}: {got}");
        }
    }

    #[test]
    fn every_site_comes_before_any_twice() {
        let holders = [
            holder(1, "home", 4000),
            holder(2, "home", 4000),
            holder(3, "home", 4000),
            holder(4, "cloud", 100),
            holder(5, "office", 200),
        ];
        let site = |device: &DeviceId| {
            let mut all = holders.iter();
            all.find(|holder| holder.device == *device)
                .map(|holder| holder.site.clone())
        };
        let placement = Placement::new(&holders, &policy(Redundancy::Replicas(3))).unwrap();
        for pack in packs(500) {
            let placed = placement.holders(&pack);
            let sites: BTreeSet<Option<String>> = placed.iter().map(site).collect();
            assert_eq!((placed.len(), sites.len()), (3, 3));
        }
        let four = Placement::new(&holders, &policy(Redundancy::Replicas(4))).unwrap();
        for pack in packs(500) {
            let placed: BTreeSet<DeviceId> = four.holders(&pack).into_iter().collect();
            assert_eq!(placed.len(), 4, "no device twice");
            assert!(placed.contains(&device(4)) && placed.contains(&device(5)));
        }
    }

    /// Pieces that are on other devices than before, and what they would be at least: what the one that came or went holds.
    fn moved(before: &Placement, after: &Placement, of: &DeviceId) -> (usize, usize) {
        let (mut moved, mut least) = (0, 0);
        for pack in packs(2000) {
            let (old, new) = (before.holders(&pack), after.holders(&pack));
            moved += new.iter().filter(|device| !old.contains(device)).count();
            least += usize::from(old.contains(of) != new.contains(of));
        }
        (moved, least)
    }

    #[test]
    fn who_comes_or_goes_moves_its_own_share_and_nothing_else() {
        for sites in [1, 2, 5, 9] {
            let label = |n: u16| format!("site {}", n % sites);
            let holders: Vec<Holder> = (0..9)
                .map(|n| holder(n, &label(n), 100 + 70 * u64::from(n % 4)))
                .collect();
            for redundancy in [Redundancy::Replicas(3), Redundancy::Erasure(4, 2)] {
                let all = Placement::new(&holders, &policy(redundancy)).unwrap();
                for n in 0..9_u16 {
                    let rest: Vec<Holder> = holders
                        .iter()
                        .filter(|holder| holder.device != device(n))
                        .cloned()
                        .collect();
                    let rest = Placement::new(&rest, &policy(redundancy)).unwrap();
                    let (went, least) = moved(&all, &rest, &device(n));
                    assert_eq!(went, least, "{sites} sites, {redundancy}, {n} goes");
                    let (came, least) = moved(&rest, &all, &device(n));
                    assert_eq!(came, least, "{sites} sites, {redundancy}, {n} comes");
                }
            }
        }
    }

    #[test]
    fn a_share_that_moves_is_that_of_the_capacity() {
        let mut holders: Vec<Holder> = (0..15).map(|n| holder(n, "home", 100)).collect();
        holders.push(holder(15, "home", 400));
        let one = policy(Redundancy::Replicas(1));
        let after = Placement::new(&holders, &one).unwrap();
        let before = Placement::new(&holders[..15], &one).unwrap();
        let (moved, _) = moved(&before, &after, &device(15));
        let ideal = 2000 * 400 / 1900;
        assert!(moved.abs_diff(ideal) * 10 <= ideal, "{moved} {ideal}");
    }

    #[test]
    fn shards_stay_where_they_are() {
        let holders: Vec<Holder> = (0..9).map(|n| holder(n, "home", 100)).collect();
        let scheme = policy(Redundancy::Erasure(4, 2));
        let all = Placement::new(&holders, &scheme).unwrap();
        for pack in packs(300) {
            let coded = all.holders(&pack);
            let same: Vec<Option<DeviceId>> = coded.iter().copied().map(Some).collect();
            assert_eq!(all.shards(&pack, &coded, |_, _| false), same);
            let gone = coded[2];
            let rest: Vec<Holder> = holders
                .iter()
                .filter(|holder| holder.device != gone)
                .cloned()
                .collect();
            let rest = Placement::new(&rest, &scheme).unwrap();
            let now = rest.shards(&pack, &coded, |_, _| false);
            for (place, (before, after)) in coded.iter().zip(&now).enumerate() {
                assert_eq!(*after == Some(*before), place != 2);
                assert!(after.is_some());
            }
        }
    }

    #[test]
    fn what_cannot_be_kept_is_said() {
        let holders: Vec<Holder> = (0..6).map(|n| holder(n, "home", 100)).collect();
        let error = |policy: &Policy| Placement::new(&holders, policy).unwrap_err().to_string();
        assert_eq!(
            error(&policy(Redundancy::Erasure(10, 6))),
            "6 holders cannot keep 10+6; best is 4+2"
        );
        assert!(error(&policy(Redundancy::Erasure(5, 5))).contains("there is no 5+5"));
        assert!(error(&policy(Redundancy::Replicas(0))).contains("there is no 0 copies"));
        let elsewhere = Policy {
            sites: Some(["cloud".to_owned()].into()),
            ..Policy::default()
        };
        assert!(error(&elsewhere).contains("no device may hold"));
        let spread = Policy {
            min_sites: 2,
            ..Policy::default()
        };
        assert_eq!(error(&spread), "holders are at 1 sites, and 2 are wanted");
        let thin = Policy {
            redundancy: Some(Redundancy::Replicas(2)),
            min_sites: 3,
            ..Policy::default()
        };
        assert_eq!(error(&thin), "2 pieces cannot be at 3 sites");
        let auto = Placement::new(&holders, &Policy::default()).unwrap();
        assert_eq!(auto.redundancy(), Redundancy::Erasure(4, 2));
        // What was promised when there were more is still placed, on as many as there are.
        let more = policy(Redundancy::Erasure(10, 6));
        let placed = Placement::as_far_as_possible(&holders, &more).unwrap();
        assert_eq!(placed.holders(&packs(1).next().unwrap()).len(), 6);
    }

    #[test]
    fn residency_is_kept_and_order_of_the_records_is_not_looked_at() {
        let mut holders: Vec<Holder> = (0..12)
            .map(|n| holder(n, if n % 2 == 0 { "home" } else { "cloud" }, 50))
            .collect();
        let home = Policy {
            redundancy: Some(Redundancy::Replicas(3)),
            sites: Some(["home".to_owned()].into()),
            min_sites: 1,
        };
        let one = Placement::new(&holders, &home).unwrap();
        holders.reverse();
        holders.push(holders[3].clone());
        let other = Placement::new(&holders, &home).unwrap();
        for pack in packs(300) {
            let placed = one.holders(&pack);
            assert_eq!(placed, other.holders(&pack));
            for device in placed {
                let holder = holders.iter().find(|holder| holder.device == device);
                assert_eq!(holder.unwrap().site, "home");
            }
        }
    }

    const FILE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/placement.json"
    );

    fn cases() -> Vec<Value> {
        let mut cases = Vec::new();
        let mut case = |name: &str, holders: &[Holder], policy: &Policy| {
            let placement = Placement::new(holders, policy).unwrap();
            let all = holders.iter().map(|holder| {
                json!({
                    "device": HEXLOWER.encode(&holder.device.0),
                    "site": holder.site,
                    "capacity": holder.capacity,
                })
            });
            let placed = packs(40).map(|pack| {
                let placed = placement.holders(&pack);
                let placed = placed.iter().map(|device| HEXLOWER.encode(&device.0));
                json!({ "pack": HEXLOWER.encode(&pack.0), "placed": placed.collect::<Vec<_>>() })
            });
            let mut value = json!({
                "name": name,
                "expect": "ok",
                "holders": all.collect::<Vec<_>>(),
                "pieces": placement.redundancy().pieces(),
                "packs": placed.collect::<Vec<_>>(),
            });
            if let Some(sites) = &policy.sites {
                value["sites"] = json!(sites);
            }
            cases.push(value);
        };
        let sizes = [1_u64 << 20, 5 << 30, 1 << 40, 3 << 40, 0, 1 << 50, 700];
        let mut uneven: Vec<Holder> = (1..=7).map(|n| holder(n, "", 0)).collect();
        for (holder, size) in uneven.iter_mut().zip(sizes) {
            holder.capacity = size;
        }
        case("of unlike sizes", &uneven, &policy(Redundancy::Replicas(1)));
        case("most of them", &uneven, &policy(Redundancy::Replicas(5)));
        let label = |n: u16| ["home", "cloud", "office"][usize::from(n % 3)];
        let spread: Vec<Holder> = (0..16)
            .map(|n| holder(n, label(n), 10 + u64::from(n)))
            .collect();
        case("at three sites", &spread, &policy(Redundancy::Replicas(3)));
        case("coded", &spread, &policy(Redundancy::Erasure(10, 6)));
        let home = Policy {
            redundancy: Some(Redundancy::Replicas(2)),
            sites: Some(["home".to_owned(), "office".to_owned()].into()),
            min_sites: 2,
        };
        case("not in the cloud", &spread, &home);
        cases
    }

    #[test]
    fn vectors_hold() {
        let today = cases();
        if std::env::var_os("KITH_BLESS").is_some() {
            std::fs::write(FILE, format!("{:#}\n", Value::from(today.clone()))).unwrap();
        }
        let kept: Vec<Value> = serde_json::from_slice(&std::fs::read(FILE).unwrap()).unwrap();
        assert_eq!(kept, today);
    }
}
