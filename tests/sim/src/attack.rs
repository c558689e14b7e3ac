//! An end, and what comes after it.

use std::collections::BTreeMap;

use crate::check::Check;
use crate::failure::Failure;
use crate::life::{Life, Statistics};
use crate::model::Model;
use crate::pool::Pool;
use crate::random::Random;
use crate::world::{End, Image, Watch, World};

/// Lives that one pool has at most.
const GENERATIONS: u64 = 3;

/// Opens the pool of an image and compares it with the model of the life that ended there. Now and
/// then that is attacked as well, and sometimes another life follows.
pub(crate) fn survive(image: Image, before: &Life) -> Result<Statistics, Failure> {
    let (step, end) = (image.step, image.end);
    let seed = Random::of(&[before.model.salt, before.generation, step, end as u64]).draw();
    recover(image, before, end, seed, 0).map_err(|failure| {
        let failure = Box::new(failure);
        Failure::After { step, end, failure }
    })
}

/// `depth` counts ends while the pool is being opened, one after another.
fn recover(
    image: Image,
    before: &Life,
    end: End,
    seed: u64,
    depth: u64,
) -> Result<Statistics, Failure> {
    let mut random = Random::new(seed);
    tracing::debug!(step = image.step, ?end, depth, "end");
    let mut statistics = Statistics { points: 1, ..Statistics::default() };
    let world = World::over(random.draw(), image);
    if depth < 2 && random.one_in(before.config.recoveries_one_in) {
        world.watch(Watch::OneIn(16));
    } else {
        world.hurry(random.chance(3, 4));
    }
    let mut pool = Pool::open(world, before.pool.uuid, &mut random, &before.config)?;
    before.check_members(&pool.members)?;
    pool.world.watch(Watch::Nothing);
    for image in pool.world.take_images() {
        // Nothing has been promised since, but what was lost by then is lost.
        let (step, then) = (image.step, image.end);
        let worse = if end == End::PowerLoss { end } else { then };
        let found = recover(image, before, worse, random.draw(), depth + 1);
        let after = |failure| Failure::After { step, end: then, failure: Box::new(failure) };
        statistics.add(&found.map_err(after)?);
    }
    pool.world.hurry(true);
    let model = compare(&mut pool, before, end)?;
    if before.generation + 1 < GENERATIONS && random.one_in(16) {
        pool.world.hurry(false);
        pool.world.watch(Watch::OneIn(32));
        statistics.lives += 1;
        let mut life = Life::new(pool, model(), random, &before.config);
        (life.generation, life.next_name) = (before.generation + 1, before.next_name);
        life.run(before.config.operations / 8)?;
        statistics.add(&life.statistics);
    }
    Ok(statistics)
}

/// Compares all that a pool holds with the model, and gives what the next life begins with.
fn compare<'a>(
    pool: &mut Pool,
    before: &'a Life,
    end: End,
) -> Result<impl FnOnce() -> Model + use<'a>, Failure> {
    let (model, spread) = (&before.model, before.config.spread);
    let info = pool.info()?;
    if info.broken || !info.damaged.is_empty() {
        return Err(Failure::Damaged { what: format!("{info:?}") });
    }
    pool.check()?;
    let infos = pool.open_all()?;
    let bytes: BTreeMap<String, u64> =
        infos.iter().map(|info| (info.name.clone(), spread.model_size(info.bytes))).collect();
    let mut check = Check::new(model, end, &bytes)?;
    for info in &infos {
        pool.read_all(&info.name, spread, |bytes| Ok(check.units(&info.name, bytes)?))?;
    }
    Ok(|| check.into_model())
}
